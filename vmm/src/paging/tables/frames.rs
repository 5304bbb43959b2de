//! Guest-physical frames to build page tables from.

use super::super::entry::PAGE_SIZE;

/// A source of 4 KiB guest-physical frames.
pub trait Frames {
    /// The address of a frame nobody else uses, or `None` when there is none left. Its contents are undefined.
    fn allocate(&mut self) -> Option<u64>;

    /// Takes back a frame given out before.
    fn free(&mut self, frame: u64);
}

/// The frames of one range of guest-physical addresses, lowest first, those given back before new ones.
#[derive(Debug, Clone)]
pub struct FramePool {
    next: u64,
    end: u64,
    free: Vec<u64>,
}

impl FramePool {
    /// The whole frames between `start` and `end`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { next: start.next_multiple_of(PAGE_SIZE), end, free: Vec::new() }
    }

    /// Frames left to allocate.
    pub fn available(&self) -> u64 {
        self.end.saturating_sub(self.next) / PAGE_SIZE + self.free.len() as u64
    }

    /// The end of the frames ever given out: all of them are below.
    pub fn used_end(&self) -> u64 {
        self.next
    }
}

impl Frames for FramePool {
    fn allocate(&mut self) -> Option<u64> {
        if let Some(frame) = self.free.pop() {
            return Some(frame);
        }
        let frame = self.next;
        if self.end.saturating_sub(frame) < PAGE_SIZE {
            return None;
        }
        self.next = frame + PAGE_SIZE;
        Some(frame)
    }

    fn free(&mut self, frame: u64) {
        self.free.push(frame);
    }
}
