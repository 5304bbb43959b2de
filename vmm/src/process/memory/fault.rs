//! Which page comes where. KVM does not say what a faulting access was: the page-table entry tells what it can have been.

use nix::errno::Errno;

use super::area::{Area, Source, find};
use super::window::MappedFile;
use super::{Memory, page_of};
use crate::paging::PageSize;
use crate::paging::entry::PAGE_SIZE;
use crate::paging::tables::{Mapping, Rights};
use crate::process::Result;

/// Anonymous pages that are provided at once, from the one that faulted on: each costs memory, a fault costs time. As
/// long as faults follow each other the number doubles up to the second one.
const AROUND_ANONYMOUS: u64 = 4;
const AROUND_SEQUENTIAL: u64 = 64;
/// Pages of a file that are mapped at once, an aligned block: they cost no memory of their own.
const AROUND_FILE: u64 = 128;
/// Pages of a writable part of a file that are copied at once: most of a program's data is written soon.
const AROUND_COPIES: u64 = 8;
/// How far a stack grows, as the usual limit says on Linux.
const STACK_LIMIT: u64 = 8 << 20;

/// What was done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// There is a page now, or more may be done with it.
    Changed,
    /// The entry allows all that the area does: another thread was faster, or the access is against the rights.
    Nothing,
}

/// Why there is no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing stands there: `SEGV_MAPERR`.
    NoArea,
    /// What stands there allows no access of this kind: `SEGV_ACCERR`.
    Forbidden,
    /// The file is shorter: `BUS_ADRERR`.
    BehindFile,
    /// No memory is left.
    NoMemory,
}

impl Memory {
    /// Resolves a fault of the guest at `address`.
    pub fn fault(&mut self, address: u64) -> std::result::Result<Resolution, Failure> {
        let page = page_of(address);
        let (start, area) = self.area_for(page).ok_or(Failure::NoArea)?;
        if !area.protection.any() {
            return Err(Failure::Forbidden);
        }
        match self.space().lookup(self.vm.arena.memory(), page) {
            Some(mapping) if mapping.rights.user && area.protection.write && !mapping.rights.write => {
                self.make_writable(page, start, &area, mapping)?;
                Ok(Resolution::Changed)
            }
            Some(_) => Ok(Resolution::Nothing),
            None => {
                self.provide(page, start, &area)?;
                Ok(Resolution::Changed)
            }
        }
    }

    /// The area that holds `page`; a stack is extended to hold it.
    fn area_for(&mut self, page: u64) -> Option<(u64, Area)> {
        if let Some((start, area)) = find(&self.areas, page) {
            return Some((start, area.clone()));
        }
        let (&start, area) = self.areas.range(page..).next()?;
        let near = self.areas.range(..page).next_back().is_none_or(|(_, below)| below.end <= page);
        if !area.grows_down || area.end - page > STACK_LIMIT || !near {
            return None;
        }
        let area = self.areas.remove(&start)?;
        self.areas.insert(page, area.clone());
        Some((page, area))
    }

    /// Puts a page where none is.
    fn provide(&mut self, page: u64, start: u64, area: &Area) -> std::result::Result<(), Failure> {
        let failure = |errno| if errno == Errno::ENOMEM { Failure::NoMemory } else { Failure::BehindFile };
        match &area.source {
            Source::Anonymous => self.provide_zeroes(page, start, area),
            Source::Shared(pages, offset) => {
                let frame = pages.frame(offset + (page - start)).map_err(failure)?;
                self.map(page, frame, self.rights(area.protection, false, frame)).map_err(failure)
            }
            Source::File(file, offset) if area.protection.write => {
                let file = file.clone();
                self.provide_copies(page, area, &file, offset + (page - start))
            }
            Source::File(file, offset) | Source::SharedFile(file, offset) => {
                let block = page & !(AROUND_FILE * PAGE_SIZE - 1);
                let first = block.max(start);
                let end = (block + AROUND_FILE * PAGE_SIZE).min(area.end);
                let (frame, _) = file.frame(offset + (page - start)).map_err(failure)?.ok_or(Failure::BehindFile)?;
                let mut around = vec![(page, frame)];
                for other in (first..end).step_by(PAGE_SIZE as usize).filter(|&other| other != page) {
                    if self.space().lookup(self.vm.arena.memory(), other).is_none()
                        && let Ok(Some((frame, _))) = file.frame(offset + (other - start))
                    {
                        around.push((other, frame));
                    }
                }
                around.sort_unstable();
                // Neighbours in the process are neighbours in the arena, but where a window ends.
                for run in around.chunk_by(|left, right| left.1 + PAGE_SIZE == right.1) {
                    self.vm.arena.populate_read(run[0].1, run.len() as u64);
                }
                let private = area.is_private();
                for (page, frame) in around {
                    self.map(page, frame, self.rights(area.protection, private, frame)).map_err(failure)?;
                }
                Ok(())
            }
        }
    }

    /// Puts copies of a file's pages from `page` on, which stands at `offset` in it.
    fn provide_copies(
        &mut self,
        page: u64,
        area: &Area,
        file: &MappedFile,
        offset: u64,
    ) -> std::result::Result<(), Failure> {
        let available = file.pages_from(offset).map_err(|_| Failure::BehindFile)?;
        if available == 0 {
            return Err(Failure::BehindFile);
        }
        let memory = self.vm.arena.memory();
        let most = available.min(AROUND_COPIES).min((area.end - page) / PAGE_SIZE);
        let absent = |at: &u64| self.space().lookup(memory, page + at * PAGE_SIZE).is_none();
        let count = 1 + (1..most).take_while(absent).count() as u64;
        let (frames, count) = match self.vm.allocate(count) {
            Some(frames) => (frames, count),
            None => (self.vm.allocate(1).ok_or(Failure::NoMemory)?, 1),
        };
        self.vm.arena.populate(frames, count);
        let mut bytes = vec![0; (count * PAGE_SIZE) as usize];
        file.read(offset, &mut bytes).map_err(|_| Failure::BehindFile)?;
        for (at, bytes) in (0..count).zip(bytes.chunks_exact(PAGE_SIZE as usize)) {
            let frame = frames + at * PAGE_SIZE;
            self.write_frame(frame, 0, bytes);
            let rights = self.rights(area.protection, true, frame);
            self.map(page + at * PAGE_SIZE, frame, rights).map_err(|_| Failure::NoMemory)?;
        }
        Ok(())
    }

    /// Puts zeroed pages from `page` on, or down to it in a stack.
    fn provide_zeroes(&mut self, page: u64, start: u64, area: &Area) -> std::result::Result<(), Failure> {
        let wanted = if self.ahead.0 == page { (self.ahead.1 * 2).min(AROUND_SEQUENTIAL) } else { AROUND_ANONYMOUS };
        let memory = self.vm.arena.memory();
        let absent = |at: &u64| self.space().lookup(memory, *at).is_none();
        let mut first = page;
        let mut count = 1;
        if area.grows_down {
            let below = (start..page).rev().step_by(PAGE_SIZE as usize).map(page_of);
            for at in below.take_while(absent).take(wanted as usize - 1) {
                (first, count) = (at, count + 1);
            }
        } else {
            let above = (page + PAGE_SIZE..area.end).step_by(PAGE_SIZE as usize);
            count += above.take_while(absent).take(wanted as usize - 1).count() as u64;
        }
        let frames = if let Some(frames) = self.vm.allocate(count) {
            frames
        } else {
            // No row of that length: the one page will do.
            (first, count) = (page, 1);
            self.vm.allocate(1).ok_or(Failure::NoMemory)?
        };
        self.vm.arena.populate(frames, count);
        self.ahead = (if area.grows_down { first - PAGE_SIZE } else { first + count * PAGE_SIZE }, wanted);
        for at in 0..count {
            let frame = frames + at * PAGE_SIZE;
            let rights = self.rights(area.protection, true, frame);
            self.map(first + at * PAGE_SIZE, frame, rights).map_err(|_| Failure::NoMemory)?;
        }
        Ok(())
    }

    /// Lets a page be written: in place if it is the process's own, otherwise as a copy.
    fn make_writable(
        &mut self,
        page: u64,
        start: u64,
        area: &Area,
        mapping: Mapping,
    ) -> std::result::Result<(), Failure> {
        let rights = Rights { write: true, ..mapping.rights };
        let old = mapping.physical;
        if !area.is_private() || self.vm.is_sole(old) {
            let vm = self.vm.clone();
            let _ = self.space_mut().protect(vm.arena.memory(), page, rights);
            return Ok(());
        }
        let new = self.vm.allocate(1).ok_or(Failure::NoMemory)?;
        let mut bytes = [0; PAGE_SIZE as usize];
        self.read_frame(page, start, area, old, &mut bytes).map_err(|_| Failure::BehindFile)?;
        self.write_frame(new, 0, &bytes);
        self.map(page, new, rights).map_err(|_| Failure::NoMemory)?;
        // What the shadow tables hold of the old frame is dropped with its use.
        self.vm.release(vec![old]);
        Ok(())
    }

    /// Maps one frame.
    pub(super) fn map(&mut self, page: u64, frame: u64, rights: Rights) -> Result<()> {
        let vm = self.vm.clone();
        let mapped = self.space_mut().map(vm.arena.memory(), &mut &*vm, (page, frame), PageSize::Small, rights);
        // What stood there before, if anything, is released by the caller.
        mapped.map(|_| ()).map_err(|_| Errno::ENOMEM)
    }
}
