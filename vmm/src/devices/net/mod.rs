//! A network interface (virtio 1.2 section 5.1) on a tap device of the host.
//!
//! Frames go straight between guest memory and the tap, with the virtio header both sides speak: checksums, and on the
//! way out segmentation, are left to the host's kernel. Not done: control queue, several queue pairs, merged receive
//! buffers, segmentation offload towards the guest.

mod device;
mod queue;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use device::{Net, NetConfig};
pub use state::NetState;
