//! What a snapshot keeps.

use serde::{Deserialize, Serialize};

use crate::devices::rate::RateState;

/// The disk as its guest knows it; the contents are the file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What `GET_ID` answers.
    pub serial: String,
    /// The limiter's buckets.
    pub rate: RateState,
}
