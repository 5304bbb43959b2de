//! What the guest sees besides its vCPUs and memory: virtio devices (virtio 1.2) behind the [`mmio`] transport.
//!
//! Every device folder has the same files: `mod.rs` (what it is), `device.rs` (configuration space and life),
//! `queue.rs` (what it does with one descriptor chain), `state.rs` (what a snapshot keeps), `tests.rs`.
//!
//! ```text
//!  vCPU thread ── MMIO exit ──► MmioTransport ──► VirtioDevice::{read_config, write_config, activate, reset}
//!  guest's doorbell ─ ioeventfd ─► event loop ──► VirtioDevice::notify
//!  host descriptor readable ─────► event loop ──► VirtioDevice::poll
//!  VirtioDevice ── Interrupt ─ irqfd ─► guest
//! ```
//!
//! Everything in guest memory is written by a stranger. A device that meets a broken ring or descriptor stops and asks
//! for a reset (`DEVICE_NEEDS_RESET`); the work done for one notification is bounded (see [`virtqueue`]).

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod bus;
mod complaint;
pub mod console;
mod interrupt;
pub mod mmio;
pub mod net;
pub mod power;
pub mod rate;
pub mod rng;
pub mod serial;
mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod virtqueue;
pub mod vsock;
mod watch;

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use interrupt::Interrupt;
pub use state::DeviceState;
use virtqueue::{Chain, Served};
pub use virtqueue::{QueueError, Virtqueue};

/// Guest memory as the devices see it: the memory slots, mapped into the VMM.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// Which device it is: the virtio device id (virtio 1.2 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network interface, section 5.1.
    Net = 1,
    /// Disk, section 5.2.
    Block = 2,
    /// Console, section 5.3.
    Console = 3,
    /// Source of entropy, section 5.4.
    Rng = 4,
    /// Memory balloon, section 5.5.
    Balloon = 5,
    /// Sockets between guest and host, section 5.10.
    Vsock = 19,
}

/// What a device works with from `DRIVER_OK` until its reset.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// Exactly one for each of [`VirtioDevice::queue_sizes`]; a queue the driver did not set up never has anything in it.
    pub queues: Vec<Virtqueue>,
    /// How the device reaches the guest.
    pub interrupt: Arc<Interrupt>,
    /// The features the driver accepted: a subset of what was offered.
    pub features: u64,
}

impl Activation {
    /// Has `handle` deal with the chains in queue `index`, see [`Virtqueue::serve`].
    fn serve(&mut self, index: u16, handle: impl FnMut(Chain<'_>) -> Served) -> Result<(), DeviceError> {
        let outcome = self.queues[usize::from(index)].serve(&self.memory, &self.interrupt, handle);
        outcome.map(drop).map_err(DeviceError::queue(index))
    }
}

/// Why a device stopped; the guest must reset it before it can be used again.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error("queue {index}: {error}")]
    Queue {
        /// Which queue.
        index: u16,
        /// What was wrong with it.
        error: QueueError,
    },
    /// The host refused something the device cannot work without.
    #[error("cannot {attempt}: {error}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        error: std::io::Error,
    },
}

impl DeviceError {
    /// For `map_err`: the error was queue `index`'s.
    fn queue(index: u16) -> impl Fn(QueueError) -> Self {
        move |error| Self::Queue { index, error }
    }

    /// For `map_err`: `attempt` failed.
    fn host<E: Into<std::io::Error>>(attempt: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Host { attempt, error: error.into() }
    }
}

/// A virtio device, without its transport.
///
/// The order of calls: `activate` once, when the driver has set `DRIVER_OK`; from then on `notify` and `poll`, until
/// `reset` or an error, after which the transport calls `reset` and the device can be activated again. `features`,
/// `read_config`, `write_config` and `state` are legal at any time. Calls never overlap: the transport is behind a lock.
pub trait VirtioDevice: Any + Send {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// The largest size of each queue, in descriptors; powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// The device's own feature bits. Those of the ring and of virtio 1 are the transport's.
    fn features(&self) -> u64;

    /// Fills `data` from the device's configuration space; what lies beyond its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to the configuration space; whatever is not writable there is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready. State that [`VirtioDevice::reset`] clears is kept here: this is also how a restored
    /// device resumes.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;

    /// What `activate` was given, while the device is active.
    fn activation(&self) -> Option<&Activation>;

    /// The guest rang the doorbell of `queue`, or the device itself did. Does nothing while the device is not active.
    fn notify(&mut self, queue: u16) -> Result<(), DeviceError>;

    /// A descriptor that is readable whenever [`VirtioDevice::poll`] has something to do; the same one for the
    /// device's whole life.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Does what has become possible on the host's side.
    fn poll(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Back to the state before the driver came: forgets the activation and everything negotiated.
    fn reset(&mut self);

    /// What a snapshot must keep of the device itself; its queues are the transport's to save.
    fn state(&self) -> DeviceState;
}

/// Reads `data.len()` bytes at `offset` of a configuration space that is `config`, with zeros beyond its end.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}
