//! What a snapshot keeps.

use serde::{Deserialize, Serialize};

use crate::devices::rate::RateState;

/// The interface as its guest knows it. Frames under way are lost, as on any network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The hardware address.
    pub mac: [u8; 6],
    /// The largest payload of a frame, in bytes, if the guest was told one.
    pub mtu: Option<u16>,
    /// The buckets of the direction to the guest.
    pub receive: RateState,
    /// The buckets of the direction from the guest.
    pub transmit: RateState,
}
