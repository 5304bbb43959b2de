//! A console (virtio 1.2 section 5.3) with one port: two of the host's descriptors, say standard input and output.
//!
//! For a guest's early messages and a line to type on. The descriptors may be anything and may belong to others as well,
//! so they stay blocking and are asked before each transfer. A host that does not read holds up the guest's console and
//! nothing else. Not done: several ports, emergency writes.

mod device;
mod queue;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use device::{Console, ConsoleConfig};
pub use state::ConsoleState;
