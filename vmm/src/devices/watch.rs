//! Several host descriptors behind one: what a device with more than one of them gives the event loop to watch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

/// Events taken at once; the rest keep the descriptor readable.
const MAX_EVENTS: usize = 16;

/// An epoll set whose members are edge-triggered: each change is heard of once, so that a device that cannot make use of
/// it yet (no buffers, no allowance) is not called again and again.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
}

impl Watch {
    /// Watches nothing. Fails where no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Hears under `token` whenever `fd` becomes readable, writable or ends. Fails for regular files, which always are.
    pub fn changes(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    /// Readable while there is something to [`Watch::take`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The tokens of what changed.
    pub fn take(&self) -> io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => drop(outcome?),
        }
        Ok(events.into_iter().map(|event| event.data.u64()).collect())
    }
}

/// Makes `fd` non-blocking, for everybody who has it open.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Whether `fd` is readable (`IN`) or writable (`OUT`) now, or has ended: for descriptors others hold too, which cannot be
/// made non-blocking under their hands.
pub fn is_ready(fd: impl AsFd, direction: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(&fd, direction)], Some(&now)).is_ok_and(|ready| ready > 0)
}
