//! The serial port of a PC: a 16550A UART at port 0x3f8, interrupt 4 (National Semiconductor PC16550D).
//!
//! The registers are `vm-superio`'s; this is their place on the bus and the descriptor their output goes to.

mod device;
mod state;

pub use device::{Serial, Sink};
pub use state::State;

/// First of the eight ports of COM1.
pub const PORT: u64 = 0x3f8;
/// How many ports it has.
pub const PORTS: u64 = 8;
/// Its interrupt line.
pub const IRQ: u32 = 4;

#[cfg(test)]
mod tests;
