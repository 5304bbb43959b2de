//! What a snapshot keeps.

use serde::{Deserialize, Serialize};

/// The console as its guest knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Width of the window in characters; 0 is unknown.
    pub columns: u16,
    /// Height of the window in characters; 0 is unknown.
    pub rows: u16,
    /// Bytes of the chain at the head of the transmit queue that the host has taken already.
    pub sent: usize,
}
