//! What a snapshot keeps: nothing. A restored guest must not see old entropy again.

use serde::{Deserialize, Serialize};

/// No state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}
