//! One root and the structures below it.

use std::sync::atomic::Ordering;

use thiserror::Error;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use super::super::entry::{ENTRIES, Entry, Level, PAGE_SIZE, PageSize, Target};
use super::super::walk::read;
use super::{Change, Frames};

/// What may be done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Reached from ring 3.
    pub user: bool,
    /// Written.
    pub write: bool,
    /// Executed.
    pub execute: bool,
}

impl Rights {
    /// Everything, for the supervisor only: what boot code maps memory with.
    pub const SUPERVISOR: Self = Self { user: false, write: true, execute: true };

    fn flags(self) -> u64 {
        let user = if self.user { Entry::USER } else { 0 };
        let write = if self.write { Entry::WRITABLE } else { 0 };
        let execute = if self.execute { 0 } else { Entry::NO_EXECUTE };
        user | write | execute
    }
}

/// A page as it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of the page.
    pub physical: u64,
    /// Its size.
    pub size: PageSize,
    /// What may be done with it.
    pub rights: Rights,
    /// It has been written to; always so where accessed and dirty flags were set in advance.
    pub dirty: bool,
}

/// Why an edit was refused. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EditError {
    /// No frame for a structure.
    #[error("cannot map {0:#x}: no guest-physical frame is left for a page table, give the guest more memory")]
    NoFrame(u64),
    /// An address is not a multiple of the page size, or not canonical.
    #[error("cannot map {address:#x} to {physical:#x}: not aligned to {size}, or outside the address space")]
    Address {
        /// Guest-virtual address.
        address: u64,
        /// Guest-physical address.
        physical: u64,
        /// Size of the page that was asked for.
        size: PageSize,
    },
    /// Another size is or was mapped there.
    #[error("cannot map {0:#x}: pages of another size are or were mapped there")]
    Occupied(u64),
    /// A structure lies outside the guest's memory.
    #[error("the page table at guest-physical {0:#x} is outside the guest's memory")]
    OutsideMemory(u64),
}

/// A root and the structures below it, in guest memory. The memory is passed to each call, so that one owner can keep
/// many spaces in one memory.
#[derive(Debug)]
pub struct AddressSpace {
    root: u64,
    level: Level,
    preset: u64,
    structures: u64,
}

impl AddressSpace {
    /// An empty space.
    ///
    /// With `preset` pages are mapped with their accessed and dirty flags set already. Nobody learns from them then
    /// what was used, but no processor has to set them, and a KVM with shadow tables maps such pages ahead of their use.
    pub fn new<M: GuestMemoryBackend>(
        memory: &M,
        frames: &mut impl Frames,
        five_level: bool,
        preset: bool,
    ) -> Result<Self, EditError> {
        let root = structure(memory, frames, 0)?;
        let level = if five_level { Level::Pml5 } else { Level::Pml4 };
        let preset = if preset { Entry::ACCESSED | Entry::DIRTY } else { 0 };
        Ok(Self { root, level, preset, structures: 1 })
    }

    /// Guest-physical address of the root, for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// How many frames the structures take.
    pub fn structures(&self) -> u64 {
        self.structures
    }

    /// Maps the page of `size` at guest-virtual `address` to guest-physical `physical`, in place of what was mapped.
    pub fn map<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        frames: &mut impl Frames,
        (address, physical): (u64, u64),
        size: PageSize,
        rights: Rights,
    ) -> Result<Change, EditError> {
        let limit = 1 << (self.level.span().trailing_zeros() + 9);
        let low = address < limit / 2 || address.wrapping_add(limit / 2) < limit / 2;
        if !(address | physical).is_multiple_of(size.bytes()) || physical & !Entry::ADDRESS != 0 || !low {
            return Err(EditError::Address { address, physical, size });
        }
        let mut level = self.level;
        let mut at = self.root + level.index(address) * 8;
        while level != size.level() {
            let entry = read(memory, at).ok_or(EditError::OutsideMemory(at))?;
            if !entry.has(Entry::PRESENT) {
                let table = structure(memory, frames, address)?;
                let allow = Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::ACCESSED;
                store(memory, at, Entry(table | allow))?;
                self.structures += 1;
                continue;
            }
            let Target::Table(below) = entry.target(level) else { return Err(EditError::Occupied(address)) };
            level = below;
            let table = entry.table();
            at = table + level.index(address) * 8;
        }
        let before = read(memory, at).ok_or(EditError::OutsideMemory(at))?;
        if before.has(Entry::PRESENT) && !before.is_page(level) {
            return Err(EditError::Occupied(address));
        }
        let large = if size == PageSize::Small { 0 } else { Entry::LARGE };
        let after = Entry(physical | Entry::PRESENT | rights.flags() | large | self.preset);
        store(memory, at, after)?;
        Ok(Change { before, after })
    }

    /// Maps `length` bytes, all of it multiples of 4 KiB, with the largest pages up to `largest` that alignment allows.
    pub fn map_range<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        frames: &mut impl Frames,
        (address, physical, length): (u64, u64, u64),
        largest: PageSize,
        rights: Rights,
    ) -> Result<(), EditError> {
        let mut done = 0;
        while done < length {
            let (address, physical) = (address + done, physical + done);
            let fits = |size: PageSize| {
                size <= largest && (address | physical).is_multiple_of(size.bytes()) && size.bytes() <= length - done
            };
            let size =
                [PageSize::Huge, PageSize::Large].into_iter().find(|&size| fits(size)).unwrap_or(PageSize::Small);
            let _ = self.map(memory, frames, (address, physical), size, rights)?;
            done += size.bytes();
        }
        Ok(())
    }

    /// Removes the page that holds `address`. `None` where there was none.
    pub fn unmap<M: GuestMemoryBackend>(&mut self, memory: &M, address: u64) -> Option<Change> {
        let (at, _, before) = self.find(memory, address)?;
        store(memory, at, Entry::default()).ok()?;
        Some(Change { before, after: Entry::default() })
    }

    /// Changes what may be done with the page that holds `address`. `None` where there is none.
    pub fn protect<M: GuestMemoryBackend>(&mut self, memory: &M, address: u64, rights: Rights) -> Option<Change> {
        let (at, _, before) = self.find(memory, address)?;
        let kept = before.0 & !(Entry::USER | Entry::WRITABLE | Entry::NO_EXECUTE);
        let after = Entry(kept | rights.flags());
        store(memory, at, after).ok()?;
        Some(Change { before, after })
    }

    /// The page that holds `address`.
    pub fn lookup<M: GuestMemoryBackend>(&self, memory: &M, address: u64) -> Option<Mapping> {
        let (_, size, entry) = self.find(memory, address)?;
        Some(mapping(size, entry))
    }

    /// The pages between `start` and `end`, lowest first, with their addresses. Absent structures cost nothing, so that
    /// the range may be as large as the space.
    pub fn pages<M: GuestMemoryBackend>(&self, memory: &M, start: u64, end: u64) -> Vec<(u64, Mapping)> {
        let unused = self.level.span().leading_zeros() - 8;
        let low = |address: u64| address << unused >> unused;
        let mut found = Vec::new();
        // The bounds without their sign extension; an end of zero is the end of the space.
        let end = if end == 0 { low(u64::MAX) + 1 } else { low(end - 1) + 1 };
        each(memory, (self.root, self.level), (0, low(start), end), &mut |address, size, entry| {
            let canonical = ((address << unused).cast_signed() >> unused).cast_unsigned();
            found.push((canonical, mapping(size, entry)));
        });
        found
    }

    /// Gives every frame of the structures back. No vCPU may use the root any more, and none of the frames may serve
    /// as a page table again while the KVM that knows them keeps shadow tables.
    pub fn give_up<M: GuestMemoryBackend>(self, memory: &M, frames: &mut impl Frames) {
        fn below<M: GuestMemoryBackend>(memory: &M, table: u64, level: Level, frames: &mut impl Frames) {
            if level != Level::Pt {
                for entry in (0..ENTRIES).filter_map(|index| read(memory, table + index * 8)) {
                    if let (true, Target::Table(lower)) = (entry.has(Entry::PRESENT), entry.target(level)) {
                        below(memory, entry.table(), lower, frames);
                    }
                }
            }
            frames.free(table);
        }
        below(memory, self.root, self.level, frames);
    }

    /// Where the entry of the page that holds `address` stands, the page's size, and the entry.
    fn find<M: GuestMemoryBackend>(&self, memory: &M, address: u64) -> Option<(u64, PageSize, Entry)> {
        let mut level = self.level;
        let mut table = self.root;
        loop {
            let at = table + level.index(address) * 8;
            let entry = read(memory, at).filter(|entry| entry.has(Entry::PRESENT))?;
            match entry.target(level) {
                Target::Page(size) => return Some((at, size, entry)),
                Target::Table(below) => {
                    table = entry.table();
                    level = below;
                }
            }
        }
    }
}

/// What an entry that maps a page of `size` says.
fn mapping(size: PageSize, entry: Entry) -> Mapping {
    let (user, write) = (entry.has(Entry::USER), entry.has(Entry::WRITABLE));
    let rights = Rights { user, write, execute: !entry.has(Entry::NO_EXECUTE) };
    Mapping { physical: entry.page(size), size, rights, dirty: entry.has(Entry::DIRTY) }
}

/// Calls `visit` with the address, the size and the entry of every page of a structure that begins at `base` and lies
/// between `start` and `end`.
fn each<M: GuestMemoryBackend>(
    memory: &M,
    (table, level): (u64, Level),
    (base, start, end): (u64, u64, u64),
    visit: &mut impl FnMut(u64, PageSize, Entry),
) {
    let first = start.saturating_sub(base) / level.span();
    let last = end.saturating_sub(base).div_ceil(level.span()).min(ENTRIES);
    for index in first..last {
        let at = table + index * 8;
        let Some(entry) = read(memory, at).filter(|entry| entry.has(Entry::PRESENT)) else { continue };
        let address = base + index * level.span();
        match entry.target(level) {
            Target::Page(size) => visit(address, size, entry),
            Target::Table(below) => each(memory, (entry.table(), below), (address, start, end), visit),
        }
    }
}

/// A fresh, empty structure, needed to map `address`.
fn structure<M: GuestMemoryBackend>(memory: &M, frames: &mut impl Frames, address: u64) -> Result<u64, EditError> {
    let frame = frames.allocate().ok_or(EditError::NoFrame(address))?;
    if memory.write_slice(&[0; PAGE_SIZE as usize], GuestAddress(frame)).is_err() {
        frames.free(frame);
        return Err(EditError::OutsideMemory(frame));
    }
    Ok(frame)
}

/// Writes an entry in one piece, so that a vCPU that walks sees the old or the new one.
fn store<M: GuestMemoryBackend>(memory: &M, at: u64, entry: Entry) -> Result<(), EditError> {
    memory.store(entry.0, GuestAddress(at), Ordering::Release).map_err(|_| EditError::OutsideMemory(at))
}
