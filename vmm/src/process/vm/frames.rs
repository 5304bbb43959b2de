//! Which frames of the arena are free, and how often the others are used.

use std::collections::BTreeMap;

use super::arena::START;
use crate::paging::entry::PAGE_SIZE;

/// The uses of a frame that stands behind a window: it is never counted, and never anyone's own.
const WINDOW: u32 = u32::MAX;

/// Hands out frames and counts their uses.
#[derive(Debug)]
pub struct FrameAllocator {
    /// Free ranges below `end`: start to number of frames, never adjacent.
    free: BTreeMap<u64, u64>,
    /// Uses of each frame below `end`.
    uses: Vec<u32>,
    end: u64,
    reserve: u64,
    /// Frames in use but for those of windows, and the most of them there may be.
    used: u64,
    most: u64,
}

impl FrameAllocator {
    /// All frames of an arena of `reserve` bytes, of which `limit` may be in use.
    pub fn new(reserve: u64, limit: u64) -> Self {
        let (end, reserve, most) = (START, START + reserve, limit / PAGE_SIZE);
        Self { free: BTreeMap::new(), uses: Vec::new(), end, reserve, used: 0, most }
    }

    /// Changes how many bytes may be in use.
    ///
    /// # Errors
    /// How many are, where that is more.
    pub fn set_limit(&mut self, limit: u64) -> Result<(), u64> {
        if self.used > limit / PAGE_SIZE {
            return Err(self.used * PAGE_SIZE);
        }
        self.most = limit / PAGE_SIZE;
        Ok(())
    }

    /// The end of the frames ever handed out.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// `count` frames in a row, the lowest there are, each with one use.
    pub fn allocate(&mut self, count: u64) -> Option<u64> {
        let used = self.used.checked_add(count).filter(|&used| used <= self.most)?;
        let start = self.take(count, 1)?;
        self.used = used;
        Some(start)
    }

    /// `count` frames in a row for a window: what stands behind them is no memory of the guest.
    pub fn window(&mut self, count: u64) -> Option<u64> {
        self.take(count, WINDOW)
    }

    fn take(&mut self, count: u64, uses: u32) -> Option<u64> {
        let found = self.free.iter().find(|&(_, &free)| free >= count).map(|(&start, &free)| (start, free));
        let start = if let Some((start, free)) = found {
            self.free.remove(&start);
            if free > count {
                self.free.insert(start + count * PAGE_SIZE, free - count);
            }
            start
        } else {
            let start = self.end;
            let end = start.checked_add(count.checked_mul(PAGE_SIZE)?).filter(|&end| end <= self.reserve)?;
            self.uses.resize(index(end), 0);
            self.end = end;
            start
        };
        self.uses[index(start)..index(start + count * PAGE_SIZE)].fill(uses);
        Some(start)
    }

    /// Whether a frame stands behind a window.
    pub fn is_window(&self, frame: u64) -> bool {
        self.uses[index(frame)] == WINDOW
    }

    /// One more use.
    pub fn share(&mut self, frame: u64) {
        let uses = &mut self.uses[index(frame)];
        if *uses != WINDOW {
            *uses += 1;
        }
    }

    /// How often a frame is used.
    pub fn uses(&self, frame: u64) -> u32 {
        self.uses[index(frame)]
    }

    /// One use less; whether it was the last. The frame is not free before [`free`](Self::free) says so.
    pub fn drop_use(&mut self, frame: u64) -> bool {
        let uses = &mut self.uses[index(frame)];
        if *uses != WINDOW {
            *uses -= 1;
        }
        *uses == 0
    }

    /// Takes frames back.
    pub fn free(&mut self, mut start: u64, mut count: u64) {
        if !self.is_window(start) {
            self.used -= count;
        }
        self.uses[index(start)..index(start + count * PAGE_SIZE)].fill(0);
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free * PAGE_SIZE == start
        {
            self.free.remove(&before);
            (start, count) = (before, count + free);
        }
        if let Some(free) = self.free.remove(&(start + count * PAGE_SIZE)) {
            count += free;
        }
        self.free.insert(start, count);
    }
}

fn index(frame: u64) -> usize {
    ((frame - START) / PAGE_SIZE) as usize
}

/// Sorted frames as ranges of neighbours: start and number.
pub fn runs(sorted: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    sorted.chunk_by(|left, right| right.wrapping_sub(*left) == PAGE_SIZE).map(|run| (run[0], run.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_frames_join_and_serve_again() {
        let mut frames = FrameAllocator::new(16 * PAGE_SIZE, 8 * PAGE_SIZE);
        let all: Vec<u64> = (0..8).map(|_| frames.allocate(1).unwrap()).collect();
        assert_eq!(frames.allocate(1), None);
        for at in [1, 3, 2] {
            assert!(frames.drop_use(all[at]));
            frames.free(all[at], 1);
        }
        assert_eq!(frames.allocate(4), None);
        assert_eq!(frames.allocate(3), Some(all[1]));
        frames.share(all[0]);
        assert!(!frames.drop_use(all[0]) && frames.drop_use(all[0]));
    }

    #[test]
    fn windows_are_beside_the_limit_which_may_change() {
        let mut frames = FrameAllocator::new(16 * PAGE_SIZE, 4 * PAGE_SIZE);
        let window = frames.window(8).unwrap();
        let own = frames.allocate(4).unwrap();
        assert_eq!(frames.allocate(1), None);
        frames.free(window, 8);
        assert_eq!((frames.allocate(1), frames.set_limit(PAGE_SIZE)), (None, Err(4 * PAGE_SIZE)));
        frames.set_limit(5 * PAGE_SIZE).unwrap();
        assert_eq!(frames.allocate(1), Some(window));
        assert!(frames.drop_use(own));
        frames.free(own, 4);
        frames.set_limit(PAGE_SIZE).unwrap();
        assert_eq!(frames.allocate(1), None);
    }

    #[test]
    fn runs_are_of_neighbours() {
        let found: Vec<_> = runs(&[0x1000, 0x2000, 0x4000, 0x4000, 0x5000]).collect();
        assert_eq!(found, [(0x1000, 2), (0x4000, 1), (0x4000, 2)]);
    }
}
