//! A memory balloon (virtio 1.2 section 5.5): the guest gives pages back to the host.
//!
//! The host names a target ([`Balloon::set_target`]); the guest puts as many pages into the balloon, and they are dropped
//! from the VMM's mapping. Pages that leave the balloon come back zeroed when they are touched. Between times the guest
//! may report free pages of its own accord. Not done: free page hints, page poisoning.

mod device;
mod queue;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use device::{Balloon, BalloonConfig};
pub use state::{BalloonState, BalloonStatistics};
