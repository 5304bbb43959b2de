//! Entropy (virtio 1.2 section 5.4): the guest hands over buffers, the device fills them from the host's `getrandom(2)`.

mod device;
mod queue;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use device::Rng;
pub use state::RngState;
