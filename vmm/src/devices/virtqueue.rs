//! A split virtqueue as the devices use it (virtio 1.2 section 2.7): a hostile driver can break its queue, nothing else.
//!
//! The rings themselves are `virtio-queue`'s. Added here are what a chain may look like, how much is done before
//! others get their turn, and when the guest is interrupted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemory, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use super::{Interrupt, Memory};

/// Chains served before other queues and devices get their turn: bounds what a guest that never stops filling its
/// ring can take of the event loop.
const PASS_CHAINS: usize = 256;
/// Bytes of buffers served before others get their turn, with one chain more at most.
const PASS_BYTES: usize = 16 << 20;

/// How the driver broke a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Addresses, alignment or size of the rings make no sense.
    #[error("the rings are not set up correctly ({0})")]
    Setup(String),
    /// The indexes of a ring make no sense.
    #[error("the ring is broken ({0})")]
    Ring(virtio_queue::Error),
    /// A chain starts outside the descriptor table.
    #[error("a chain starts at descriptor {0}, outside the table")]
    Head(u16),
    /// A chain loops, is longer than the queue, or leads outside its table.
    #[error("the chain at descriptor {0} does not end")]
    Endless(u16),
    /// A buffer is not, or not wholly, guest memory.
    #[error("the chain at descriptor {head} names {length} bytes at {address:#x}, which is not guest memory")]
    Unbacked {
        /// The chain.
        head: u16,
        /// The buffer's guest physical address.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// Buffers for the device to read follow buffers to write.
    #[error("the chain at descriptor {0} has its buffers in the wrong order")]
    Order(u16),
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done with; this many bytes were written to its writable part.
    Used(u32),
    /// It stays in the ring, and so does everything behind it, until the device looks again by itself.
    Postponed,
}

/// Why [`Virtqueue::serve`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The ring is empty; the driver will ring when it is not.
    Drained,
    /// A chain was postponed.
    Postponed,
    /// It is others' turn; the queue has rung its own doorbell and so comes again.
    Yielded,
}

/// One descriptor chain: what the driver wrote and where it wants its answer.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What identifies the chain to the driver.
    pub head: u16,
    /// Written by the driver.
    pub readable: Buffers<'m>,
    /// To be written by the device.
    pub writable: Buffers<'m>,
}

/// A queue's registers and positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtqueueState {
    /// Descriptors, as the driver chose.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// Next entry of the available ring to look at.
    pub next_available: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// A queue in use.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    doorbell: Arc<EventFd>,
}

impl Virtqueue {
    /// A queue of at most `max_size` descriptors with its rings where `state` says. `event_index` is whether
    /// `VIRTIO_F_EVENT_IDX` was negotiated. Fails where the rings are misaligned or not in `memory`.
    pub fn new(
        state: &VirtqueueState,
        max_size: u16,
        event_index: bool,
        memory: &Memory,
        doorbell: Arc<EventFd>,
    ) -> Result<Self, QueueError> {
        let queue = Queue::try_from(virtio_queue::QueueState {
            max_size,
            size: state.size,
            ready: state.ready,
            event_idx_enabled: event_index,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
            next_avail: state.next_available,
            next_used: state.next_used,
        })
        .map_err(|error| QueueError::Setup(error.to_string()))?;
        if state.ready && !queue.is_valid(memory) {
            return Err(QueueError::Setup("they lie outside guest memory".to_owned()));
        }
        Ok(Self { queue, doorbell })
    }

    /// The registers and positions now.
    pub fn state(&self) -> VirtqueueState {
        VirtqueueState {
            size: self.queue.size(),
            ready: self.queue.ready(),
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Takes the next chain out of the available ring.
    pub fn pop<'m>(&mut self, memory: &'m Memory) -> Result<Option<Chain<'m>>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let Some(chain) = self.queue.iter(memory).map_err(QueueError::Ring)?.next() else { return Ok(None) };
        let head = chain.head_index();
        let size = self.queue.size();
        if head >= size {
            return Err(QueueError::Head(head));
        }
        let mut result = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut last: Option<Descriptor> = None;
        // An indirect table could hold 65,535 descriptors; the standard allows a chain no more than the queue has.
        for descriptor in chain.take(usize::from(size)) {
            last = Some(descriptor);
            if descriptor.len() == 0 {
                continue;
            }
            let unbacked = || QueueError::Unbacked { head, address: descriptor.addr().0, length: descriptor.len() };
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut result.writable, Permissions::Write)
            } else if result.writable.is_empty() {
                (&mut result.readable, Permissions::Read)
            } else {
                return Err(QueueError::Order(head));
            };
            let slices = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
            for slice in slices.map_err(|_| unbacked())? {
                buffers.push(slice.map_err(|_| unbacked())?);
            }
        }
        match last {
            Some(last) if !last.has_next() => Ok(Some(result)),
            _ => Err(QueueError::Endless(head)),
        }
    }

    /// Puts the chain that was popped last back.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes in it, without interrupting it.
    pub fn push_used(&mut self, memory: &Memory, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue.add_used(memory, head, written).map_err(QueueError::Ring)
    }

    /// Interrupts the guest if it wants to hear of what was pushed.
    pub fn interrupt(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
        if self.queue.needs_notification(memory).map_err(QueueError::Ring)? {
            interrupt.signal_used();
        }
        Ok(())
    }

    /// Has `handle` deal with the chains in the ring one after the other, gives back what it used and interrupts the
    /// guest once.
    pub fn serve(
        &mut self,
        memory: &Memory,
        interrupt: &Interrupt,
        mut handle: impl FnMut(Chain<'_>) -> Served,
    ) -> Result<Progress, QueueError> {
        if !self.queue.ready() {
            return Ok(Progress::Drained);
        }
        self.queue.disable_notification(memory).map_err(QueueError::Ring)?;
        let (mut used, mut bytes) = (false, 0);
        let mut progress = Progress::Yielded;
        for _ in 0..PASS_CHAINS {
            let Some(chain) = self.pop(memory)? else {
                if self.queue.enable_notification(memory).map_err(QueueError::Ring)? {
                    continue;
                }
                progress = Progress::Drained;
                break;
            };
            bytes += chain.readable.len() + chain.writable.len();
            let head = chain.head;
            match handle(chain) {
                Served::Used(written) => self.push_used(memory, head, written)?,
                Served::Postponed => {
                    self.unpop();
                    progress = Progress::Postponed;
                    break;
                }
            }
            used = true;
            if bytes >= PASS_BYTES {
                break;
            }
        }
        if used {
            self.interrupt(memory, interrupt)?;
        }
        if progress == Progress::Yielded {
            self.ring();
        }
        Ok(progress)
    }

    /// Rings the queue's own doorbell: the event loop will call the device for this queue.
    pub fn ring(&self) {
        // Fails only when the counter would overflow, and then the doorbell rings anyway.
        let _ = self.doorbell.write(1);
    }
}
