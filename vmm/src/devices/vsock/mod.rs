//! Sockets between guest and host (virtio 1.2 section 5.10): streams of the guest's `AF_VSOCK` are unix sockets here.
//!
//! | who begins | how |
//! | --- | --- |
//! | a process of the host | connects to the device's unix socket, writes `CONNECT <port>\n`, reads `OK <host port>\n` once the guest has accepted; end of file if it has not |
//! | the VMM | [`Vsock::connect`]: one end of a socket pair, which ends if the guest refuses |
//! | the guest, to host port n | the device connects to the unix socket `<path>_<n>`, or to what [`Vsock::listen`] waits for |
//!
//! ```text
//!             ┌ Requested ──RESPONSE──┐
//!  (host) ────┘                       ├──► Open ──both directions ended──► RST, gone
//!  (guest) ──REQUEST, answered────────┘     └──RST──► gone
//! ```
//!
//! Flow control is by credit: the guest never has more than [`connection::BUFFER`] bytes under way, and is sent no more
//! than it says it has room for. Not done: datagrams, `SEQPACKET`.

mod connection;
mod device;
mod host;
mod queue;
mod state;
mod streams;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

pub use connection::BUFFER;
pub use device::{Vsock, VsockConfig};
pub use state::VsockState;
