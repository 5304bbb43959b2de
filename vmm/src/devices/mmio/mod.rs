//! The virtio-mmio transport, version 2 (virtio 1.2 section 4.2): a page of registers for each device.
//!
//! ```text
//!          write 0 (from anywhere)
//!  RESET ──ACKNOWLEDGE, DRIVER──► features ──FEATURES_OK──► queues ──DRIVER_OK──► device active
//!                                                                                   │ broken queue
//!                                                              DEVICE_NEEDS_RESET ◄─┘
//! ```

mod registers;
mod state;
#[cfg(test)]
mod tests;
mod transport;

pub use registers::{QUEUE_NOTIFY, WINDOW};
pub use state::MmioState;
pub use transport::MmioTransport;
