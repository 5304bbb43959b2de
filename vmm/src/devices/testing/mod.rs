//! What the devices' tests and fuzz targets share: guest memory with guarded edges, a small well-behaved driver, and a
//! thoroughly ill-behaved one.

mod driver;
mod memory;
mod wild;

pub use driver::{DATA, Driver, RING_SIZE};
pub use memory::{GuardedMemory, HIGH_BASE, HIGH_SIZE, LOW_SIZE};
pub use wild::{Bytes, ill_behaved};
