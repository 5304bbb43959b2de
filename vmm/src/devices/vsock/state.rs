//! What a snapshot keeps. Connections do not survive it: the restored guest is told that its transport was reset.

use serde::{Deserialize, Serialize};

/// The guest's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u64,
}
