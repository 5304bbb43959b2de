//! A disk (virtio 1.2 section 5.2) in a file, a block device or a memfd.
//!
//! Requests are done at once, on the event loop, straight between the file and guest memory. What the host refuses (the
//! disk has vanished, the file system below is full) is an I/O error for the guest and a line in the log. Not done:
//! several queues, cache mode switching, secure erase, zoned disks.

mod device;
mod queue;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use device::{Block, BlockConfig};
pub use state::BlockState;
