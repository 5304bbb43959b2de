//! Which page comes where. KVM does not say what a faulting access was: the page-table entry tells what it can have been.

use std::sync::Arc;

use nix::errno::Errno;

use super::area::{Area, LOWEST, Source, find};
use super::window::MappedFile;
use super::{Memory, page_of};
use crate::paging::PageSize;
use crate::paging::entry::PAGE_SIZE;
use crate::paging::tables::{Mapping, Rights};
use crate::process::Result;

/// Pages of a file that are mapped at once, an aligned block: they cost no memory of their own.
const AROUND_FILE: u64 = 256;
/// Pages of its own that an area gets at once, an aligned block: each costs memory, a fault costs time. An area gets half
/// as many as it has, within these bounds: little where little is used, and few faults where much is.
const AROUND_ZEROES: (u64, u64) = (4, 256);
/// As above where they are copies of a file: most of a program's data is written soon.
const AROUND_COPIES: (u64, u64) = (16, 256);
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

impl Failure {
    /// Why a page of a file could not be had.
    fn of_file(errno: Errno) -> Self {
        if errno == Errno::ENOMEM { Self::NoMemory } else { Self::BehindFile }
    }
}

impl Memory {
    /// Puts the page at `address`, and what comes with it, before a fault asks for it. Where that fails the fault says so.
    pub fn bring(&mut self, address: u64) {
        let page = page_of(address);
        if self.space().lookup(self.vm.arena.memory(), page).is_none()
            && let Some((start, area)) = find(&self.areas, page).map(|(start, area)| (start, area.clone()))
            && area.protection.any()
        {
            let _ = self.provide(page, start, &area);
        }
    }

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
        if !area.grows_down || page < LOWEST || area.end - page > STACK_LIMIT || !near {
            return None;
        }
        let area = self.areas.remove(&start)?;
        self.areas.insert(page, area.clone());
        Some((page, area))
    }

    /// Puts a page where none is.
    fn provide(&mut self, page: u64, start: u64, area: &Area) -> std::result::Result<(), Failure> {
        match &area.source {
            Source::Anonymous => self.provide_zeroes(page, start, area),
            Source::Shared(pages, offset) => {
                let frame = pages.frame(offset + (page - start)).map_err(Failure::of_file)?;
                self.map(page, frame, self.rights(area.protection, false, frame)).map_err(Failure::of_file)
            }
            Source::File(file, offset) if area.protection.write => {
                self.provide_copies(page, start, area, (file, offset + (page - start)))
            }
            Source::File(file, offset) | Source::SharedFile(file, offset) => {
                self.provide_window(page, start, area, (file, *offset))
            }
        }
    }

    /// Puts the pages of a file that stand around `page`; the area begins at `offset` in it.
    fn provide_window(
        &mut self,
        page: u64,
        start: u64,
        area: &Area,
        (file, offset): (&Arc<MappedFile>, u64),
    ) -> std::result::Result<(), Failure> {
        file.frame(offset + (page - start)).map_err(Failure::of_file)?.ok_or(Failure::BehindFile)?;
        let block = page & !(AROUND_FILE * PAGE_SIZE - 1);
        let end = (block + AROUND_FILE * PAGE_SIZE).min(area.end);
        let mut at = block.max(start);
        while at < end {
            // Neighbours in the process are neighbours in the arena, but where a window ends.
            let (frame, follow) = match file.frame(offset + (at - start)) {
                Ok(Some(found)) => found,
                _ if at > page => break,
                _ => {
                    at += PAGE_SIZE;
                    continue;
                }
            };
            let count = follow.min((end - at) / PAGE_SIZE);
            self.vm.arena.populate_read(frame, count);
            for (at, frame) in (0..count).map(|page| (at + page * PAGE_SIZE, frame + page * PAGE_SIZE)) {
                if self.space().lookup(self.vm.arena.memory(), at).is_none() {
                    self.map(at, frame, self.rights(area.protection, area.is_private(), frame))
                        .map_err(Failure::of_file)?;
                }
            }
            at += count * PAGE_SIZE;
        }
        Ok(())
    }

    /// Puts copies of a file's pages: that of `page`, which stands at `offset` in it, and its neighbours.
    fn provide_copies(
        &mut self,
        page: u64,
        start: u64,
        area: &Area,
        (file, offset): (&Arc<MappedFile>, u64),
    ) -> std::result::Result<(), Failure> {
        let available = file.pages_from(offset).map_err(|_| Failure::BehindFile)?;
        if available == 0 {
            return Err(Failure::BehindFile);
        }
        let end = area.end.min(page.saturating_add(available.saturating_mul(PAGE_SIZE)));
        let pages = self.absent_around(page, (start, end), AROUND_COPIES, area.brought);
        let (frames, pages) = self.allocate_for(page, pages)?;
        let (first, last) = (pages[0], pages[pages.len() - 1]);
        let mut bytes = vec![0; (last - first + PAGE_SIZE) as usize];
        file.read(offset - (page - first), &mut bytes).map_err(|_| Failure::BehindFile)?;
        for (page, frame) in pages.iter().zip((frames..).step_by(PAGE_SIZE as usize)) {
            let at = (page - first) as usize;
            self.write_frame(frame, 0, &bytes[at..at + PAGE_SIZE as usize]);
        }
        self.map_own(start, area, frames, &pages)
    }

    /// Puts zeroes on `page` and its neighbours.
    fn provide_zeroes(&mut self, page: u64, start: u64, area: &Area) -> std::result::Result<(), Failure> {
        let pages = self.absent_around(page, (start, area.end), AROUND_ZEROES, area.brought);
        let (frames, pages) = self.allocate_for(page, pages)?;
        self.map_own(start, area, frames, &pages)
    }

    /// The pages that are absent in the aligned block around `page`, as far as it lies between the bounds.
    fn absent_around(&self, page: u64, (start, end): (u64, u64), (least, most): (u64, u64), brought: u64) -> Vec<u64> {
        let length = (brought / 2).next_power_of_two().clamp(least, most) * PAGE_SIZE;
        let block = page & !(length - 1);
        let pages = (block.max(start)..(block + length).min(end)).step_by(PAGE_SIZE as usize);
        let absent = |&at: &u64| self.space().lookup(self.vm.arena.memory(), at).is_none();
        pages.filter(absent).collect()
    }

    /// Frames in a row for `pages`, or for `page` alone where there is no such row, and for which they are.
    fn allocate_for(&self, page: u64, pages: Vec<u64>) -> std::result::Result<(u64, Vec<u64>), Failure> {
        let (frames, pages) = match self.vm.allocate(pages.len() as u64) {
            Some(frames) => (frames, pages),
            None => (self.vm.allocate(1).ok_or(Failure::NoMemory)?, vec![page]),
        };
        self.vm.arena.populate(frames, pages.len() as u64);
        Ok((frames, pages))
    }

    /// Maps frames in a row that belong to this process alone.
    fn map_own(&mut self, start: u64, area: &Area, frames: u64, pages: &[u64]) -> std::result::Result<(), Failure> {
        if let Some(area) = self.areas.get_mut(&start) {
            area.brought += pages.len() as u64;
        }
        for (&page, frame) in pages.iter().zip((frames..).step_by(PAGE_SIZE as usize)) {
            self.map(page, frame, self.rights(area.protection, true, frame)).map_err(|_| Failure::NoMemory)?;
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
