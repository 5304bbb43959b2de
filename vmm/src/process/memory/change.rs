//! What a program asks for: mmap, munmap, mprotect, mremap, brk, madvise.

use nix::errno::Errno;

use super::area::{Area, LOWEST, Protection, Source, find, join, place, split};
use super::{Memory, Result, page_of};
use crate::paging::entry::PAGE_SIZE;
use crate::paging::tables::Mapping;
use crate::process::vm::layout;

/// Most areas of one process, as `vm.max_map_count` says on Linux.
const MOST_AREAS: usize = 65530;

/// Where a mapping goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Anywhere; here if it is free.
    Hint(u64),
    /// Here, in place of what is there.
    Fixed(u64),
    /// Here, or not at all.
    FixedFree(u64),
}

impl Memory {
    /// Maps an area and gives its start.
    pub fn mmap(&mut self, at: Place, length: u64, protection: Protection, source: Source, grows_down: bool) -> Result {
        let length = length.checked_next_multiple_of(PAGE_SIZE).filter(|&length| length > 0).ok_or(Errno::ENOMEM)?;
        if self.areas.len() >= MOST_AREAS {
            return Err(Errno::ENOMEM);
        }
        let start = match at {
            Place::Fixed(start) => {
                check_range(start, length)?;
                self.munmap(start, length)?;
                start
            }
            Place::FixedFree(start) => {
                check_range(start, length)?;
                if !self.is_free(start, length) {
                    return Err(Errno::EEXIST);
                }
                start
            }
            Place::Hint(start) => {
                let start = page_of(start);
                let fits = start >= LOWEST && start.checked_add(length).is_some_and(|end| end <= layout::MMAP_END);
                if fits && self.is_free(start, length) {
                    start
                } else {
                    place(&self.areas, length).ok_or(Errno::ENOMEM)?
                }
            }
        };
        // Of a file there is nothing below where it begins.
        let grows_down = grows_down && matches!(source, Source::Anonymous);
        self.areas.insert(start, Area { end: start + length, protection, source, grows_down, brought: 0 });
        join(&mut self.areas, start);
        Ok(start)
    }

    /// Removes what stands in a range.
    pub fn munmap(&mut self, start: u64, length: u64) -> Result<()> {
        let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        check_range(start, length)?;
        let end = start + length;
        self.cut(start, end);
        let gone: Vec<u64> = self.areas.range(start..end).map(|(&start, _)| start).collect();
        let removed: Vec<(u64, Area)> =
            gone.into_iter().filter_map(|start| self.areas.remove(&start).map(|area| (start, area))).collect();
        for (start, area) in &removed {
            self.drop_pages(*start, area.end);
        }
        // Only now may the files' windows go: nothing maps their frames any more.
        drop(removed);
        Ok(())
    }

    /// Changes what may be done with a range.
    pub fn mprotect(&mut self, start: u64, length: u64, protection: Protection) -> Result<()> {
        let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        check_range(start, length).map_err(|_| Errno::ENOMEM)?;
        let end = start + length;
        if !self.covers(start, end) {
            return Err(Errno::ENOMEM);
        }
        self.cut(start, end);
        let vm = self.vm.clone();
        let memory = vm.arena.memory();
        let mut narrowed = Vec::new();
        let starts: Vec<u64> = self.areas.range(start..end).map(|(&start, _)| start).collect();
        for start in starts {
            let Some(area) = self.areas.get_mut(&start) else { continue };
            area.protection = protection;
            let (private, end) = (area.is_private(), area.end);
            for (page, mapping) in self.space().pages(memory, start, end) {
                let rights = self.rights(protection, private, mapping.physical);
                let change = self.space_mut().protect(memory, page, rights);
                if change.is_some_and(|change| change.takes_away()) {
                    narrowed.push(mapping.physical);
                }
            }
            join(&mut self.areas, start);
        }
        join(&mut self.areas, end);
        vm.zap(narrowed);
        Ok(())
    }

    /// Moves the end of the heap and gives where it is then; unchanged where it cannot move.
    pub fn set_break(&mut self, wanted: u64) -> u64 {
        let (start, end) = self.program_break;
        let Some(new) = wanted.checked_next_multiple_of(PAGE_SIZE).filter(|_| wanted >= start) else { return end };
        let old = end.next_multiple_of(PAGE_SIZE);
        if new < old {
            if self.munmap(new, old - new).is_err() {
                return end;
            }
        } else if new > old {
            let protection = Protection { read: true, write: true, execute: false };
            let at = Place::FixedFree(old);
            if self.mmap(at, new - old, protection, Source::Anonymous, false).is_err() {
                return end;
            }
        }
        self.program_break.1 = wanted;
        wanted
    }

    /// Gives up the contents of private pages: they read as they did at first.
    pub fn discard(&mut self, start: u64, length: u64) -> Result<()> {
        let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        check_range(start, length)?;
        if !self.covers(start, start + length) {
            return Err(Errno::ENOMEM);
        }
        self.drop_pages(start, start + length);
        Ok(())
    }

    /// Changes the size of an area's mapping, and its place where that is allowed.
    pub fn mremap(&mut self, old: u64, old_length: u64, new_length: u64, may_move: bool, to: Option<u64>) -> Result {
        let round = |length: u64| length.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL);
        let (old_length, new_length) = (round(old_length)?, round(new_length)?);
        check_range(old, old_length)?;
        let (start, area) = find(&self.areas, old).ok_or(Errno::EFAULT)?;
        if old_length == 0 || new_length == 0 || old + old_length > area.end {
            return Err(if new_length == 0 { Errno::EINVAL } else { Errno::EFAULT });
        }
        let area = area.clone();
        if to.is_none() {
            if new_length <= old_length {
                self.munmap(old + new_length, old_length - new_length)?;
                return Ok(old);
            }
            let (tail, more) = (old + old_length, new_length - old_length);
            if tail == area.end && self.is_free(tail, more) && check_range(tail, more).is_ok() {
                if let Some(area) = self.areas.get_mut(&start) {
                    area.end += more;
                }
                return Ok(old);
            }
            if !may_move {
                return Err(Errno::ENOMEM);
            }
        }
        self.cut(old, old + old_length);
        let moved = self.areas.get(&old).cloned().ok_or(Errno::EFAULT)?;
        let at = to.map_or(Place::Hint(0), Place::Fixed);
        if to.is_some_and(|to| to < old + old_length && old < to.saturating_add(new_length)) {
            return Err(Errno::EINVAL);
        }
        let new = self.mmap(at, new_length, moved.protection, moved.source.clone(), false)?;
        self.move_pages((old, old_length), (new, new_length))?;
        // The new area may have been joined to the old one.
        self.cut(old, old + old_length);
        self.areas.remove(&old);
        Ok(new)
    }

    /// Moves the pages of a range to another one, where none are, and gives up those that do not fit there. Where that fails all
    /// are where they were, and nothing stands in the other range.
    fn move_pages(&mut self, (old, old_length): (u64, u64), (new, new_length): (u64, u64)) -> Result<()> {
        let vm = self.vm.clone();
        let memory = vm.arena.memory();
        let pages = self.space().pages(memory, old, old + old_length);
        let count = pages.partition_point(|(page, _)| page - old < new_length);
        let (kept, dropped) = pages.split_at(count);
        let frames =
            |pages: &[(u64, Mapping)]| -> Vec<u64> { pages.iter().map(|(_, mapping)| mapping.physical).collect() };
        for (at, (page, mapping)) in kept.iter().enumerate() {
            if let Err(error) = self.map(new + (page - old), mapping.physical, mapping.rights) {
                for (page, _) in &kept[..at] {
                    let _ = self.space_mut().unmap(memory, new + (page - old));
                }
                // Other threads may have come upon them already.
                vm.zap(frames(&kept[..at]));
                self.munmap(new, new_length)?;
                return Err(error);
            }
        }
        for (page, _) in &pages {
            let _ = self.space_mut().unmap(memory, *page);
        }
        vm.zap(frames(kept));
        vm.release(frames(dropped));
        Ok(())
    }

    /// Whether nothing stands in a range.
    fn is_free(&self, start: u64, length: u64) -> bool {
        self.areas.range(..start.saturating_add(length)).next_back().is_none_or(|(_, area)| area.end <= start)
    }

    /// Whether areas stand in all of a range.
    fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            match find(&self.areas, at) {
                Some((_, area)) => at = area.end,
                None => return false,
            }
        }
        true
    }

    /// Makes areas begin and end at the bounds.
    fn cut(&mut self, start: u64, end: u64) {
        split(&mut self.areas, start);
        split(&mut self.areas, end);
    }

    /// Unmaps the pages of a range.
    fn drop_pages(&mut self, start: u64, end: u64) {
        let vm = self.vm.clone();
        let memory = vm.arena.memory();
        let pages = self.space().pages(memory, start, end);
        for (page, _) in &pages {
            let _ = self.space_mut().unmap(memory, *page);
        }
        vm.release(pages.into_iter().map(|(_, mapping)| mapping.physical).collect());
    }
}

/// Whether a range may be mapped at all.
fn check_range(start: u64, length: u64) -> Result<()> {
    let end = start.checked_add(length).ok_or(Errno::EINVAL)?;
    if !start.is_multiple_of(PAGE_SIZE) || end > layout::USER_END {
        return Err(Errno::EINVAL);
    }
    if start < LOWEST && length > 0 {
        return Err(Errno::EPERM);
    }
    Ok(())
}
