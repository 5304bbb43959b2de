//! The handler of shadow faults, and the guest's operations as they go through it.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryRegion as _};

use super::super::access::{Access, Fault, Operation, Privilege};
use super::super::entry::{Entry, Level, PAGE_SIZE, Target};
use super::super::mode::Mode;
use super::super::walk::{End, Walk, walk};
use super::cache::{Cache, Key};

/// The most shadow pages one fill can need: every level, a root that was just replaced, and the parts of a large page.
const MOST_FOR_A_FILL: u64 = 8;

/// Where an access went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// To host-virtual memory, by the shadow tables.
    Host(u64),
    /// To a guest-physical address, by the handler: the shadow cannot express it.
    Emulated(u64),
}

/// What happened, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Faults that the handler resolved.
    pub shadow_faults: u64,
    /// Faults that were the guest's own.
    pub guest_faults: u64,
    /// Accesses that the handler made in the guest's place.
    pub emulated: u64,
    /// Times the whole shadow was dropped: for want of room, or since the mode changed.
    pub flushes: u64,
}

/// The shadow of one vCPU's page tables.
#[derive(Debug)]
pub struct Shadow {
    guest: Mode,
    cache: Cache,
    counters: Counters,
}

impl Shadow {
    /// An empty shadow with room for `pages` (at least 8) shadow pages.
    pub fn new(mode: Mode, pages: u64) -> Result<Self, vm_memory::mmap::FromRangesError> {
        Ok(Self { guest: mode, cache: Cache::new(pages.max(MOST_FOR_A_FILL))?, counters: Counters::default() })
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The guest loads CR3, CR0, CR4 or EFER. Another root alone keeps what is cached of all roots: none of it can be
    /// stale. Another mode gives the same entries another meaning.
    pub fn load_mode(&mut self, mode: Mode) {
        if (Mode { root: mode.root, ..self.guest }) != mode {
            self.flush();
        }
        self.guest = mode;
    }

    /// The guest executes INVLPG.
    pub fn invalidate(&mut self, address: u64) {
        let walk = walk(&self.cache.memory, &self.hardware(), address);
        if let (End::Page(_), Some(step)) = (walk.end, walk.steps.last()) {
            self.cache.drop_entry(step.address);
        }
    }

    /// Eight bytes at guest-physical `physical` were written: what was copied from there, if it is a table, is dropped.
    pub fn table_written(&mut self, physical: u64) {
        let frame = physical & !(PAGE_SIZE - 1);
        let index = physical % PAGE_SIZE / 8;
        for key in Key::tables(frame) {
            if let Some(shadow) = self.cache.get(key) {
                self.cache.drop_entry(shadow + index * 8);
            }
        }
    }

    /// The host takes back or protects the memory behind the guest frame at `physical`: every shadow entry that maps it
    /// is dropped. Tables copied from it stay.
    pub fn forget_backing(&mut self, physical: u64) {
        for at in self.cache.mappings_of(physical & !(PAGE_SIZE - 1)) {
            self.cache.drop_entry(at);
        }
    }

    /// Reads eight bytes at an aligned address as the guest. Where there is no memory all bits are ones.
    pub fn read<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: u64,
        privilege: Privilege,
    ) -> Result<u64, Fault> {
        let reached = self.reach(memory, address, Access { operation: Operation::Read, privilege })?;
        let physical = physical(memory, reached);
        Ok(memory.load(GuestAddress(physical), Ordering::Acquire).unwrap_or(u64::MAX))
    }

    /// Writes eight bytes at an aligned address as the guest. Where there is no memory they vanish.
    pub fn write<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: u64,
        privilege: Privilege,
        value: u64,
    ) -> Result<(), Fault> {
        let reached = self.reach(memory, address, Access { operation: Operation::Write, privilege })?;
        let physical = physical(memory, reached);
        // What there is no memory for has no effect.
        let _ = memory.store(value, GuestAddress(physical), Ordering::Release);
        if matches!(reached, Reached::Emulated(_)) {
            self.table_written(physical);
        }
        Ok(())
    }

    /// Makes an access, up to the point where it reaches memory. The caller of a write that is
    /// [`Reached::Emulated`] has to make the write and to call [`table_written`](Self::table_written).
    pub fn reach<M: GuestMemoryBackend>(&mut self, memory: &M, address: u64, access: Access) -> Result<Reached, Fault> {
        if let Some(host) = self.by_hardware(address, access) {
            return Ok(Reached::Host(host));
        }
        let physical = loop {
            let walk = walk(memory, &self.guest, address);
            let physical = walk.check(&self.guest, access).inspect_err(|_| self.counters.guest_faults += 1)?;
            if walk.mark(memory, access.operation) {
                break physical;
            }
        };
        self.counters.shadow_faults += 1;
        self.fill(memory, &walk(memory, &self.guest, address));
        Ok(self.by_hardware(address, access).map_or_else(
            || {
                self.counters.emulated += 1;
                Reached::Emulated(physical)
            },
            Reached::Host,
        ))
    }

    /// The access as the processor makes it: through the shadow tables alone.
    pub(super) fn by_hardware(&self, address: u64, access: Access) -> Option<u64> {
        let mode = self.hardware();
        walk(&self.cache.memory, &mode, address).check(&mode, access).ok()
    }

    /// The mode the processor really runs in: the shadow's root, and read-only pages that hold for the supervisor too.
    fn hardware(&self) -> Mode {
        let root = self.cache.get(self.root());
        // Without a root yet the walk reads outside the shadow's memory, which is a fault like any other.
        Mode { root: root.unwrap_or(Entry::ADDRESS), write_protect: true, physical_bits: 52, ..self.guest }
    }

    fn root(&self) -> Key {
        Key { guest: self.guest.root, level: self.guest.root_level(), direct: false }
    }

    /// Copies the entries of a walk that reached a page.
    fn fill<M: GuestMemoryBackend>(&mut self, memory: &M, walk: &Walk) {
        let End::Page(page) = walk.end else { return };
        if self.cache.available() < MOST_FOR_A_FILL {
            self.flush();
        }
        let mut table = self.table(self.root());
        for step in &walk.steps {
            let at = table + step.level.index(walk.address) * 8;
            let rights = step.entry.0 & (Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::NO_EXECUTE);
            let clean = if step.entry.has(Entry::DIRTY) { 0 } else { Entry::WRITABLE };
            let leaf = rights & !clean;
            match (step.entry.target(step.level), step.level.below()) {
                (Target::Table(below), _) => {
                    table = self.table(Key { guest: step.entry.table(), level: below, direct: false });
                    self.cache.link(at, table, rights | Entry::ACCESSED);
                }
                (Target::Page(_), Some(below)) => {
                    self.fill_large(memory, walk.address, (at, below), page.address, leaf);
                }
                (Target::Page(_), None) => self.map(memory, at, page.address, leaf),
            }
        }
    }

    /// The 4 KiB part of a large page that holds `address`, by direct pages from `level` down.
    fn fill_large<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: u64,
        (mut at, mut level): (u64, Level),
        start: u64,
        rights: u64,
    ) {
        let mut guest = start;
        let mut rights = rights;
        loop {
            let (table, _) = self.cache.page(Key { guest, level, direct: true });
            self.cache.link(at, table, rights | Entry::ACCESSED);
            // The rights stand in the first entry; parts are shared by all that map the page.
            rights = Entry::PRESENT | Entry::WRITABLE | Entry::USER;
            at = table + level.index(address) * 8;
            guest += level.index(address) * level.span();
            match level.below() {
                Some(below) => level = below,
                None => return self.map(memory, at, guest, rights),
            }
        }
    }

    /// Maps a guest frame, if there is memory behind it; read-only if it is a table.
    fn map<M: GuestMemoryBackend>(&mut self, memory: &M, at: u64, guest: u64, rights: u64) {
        let Ok(host) = memory.get_host_address(GuestAddress(guest)) else { return self.cache.drop_entry(at) };
        let writable = if self.cache.is_table(guest) { !Entry::WRITABLE } else { u64::MAX };
        let flags = (rights & writable) | Entry::ACCESSED | Entry::DIRTY;
        self.cache.map(at, guest, Entry(host as u64 | flags));
    }

    /// The shadow page of a guest's table; if it is new, the frame becomes read-only wherever it is mapped.
    fn table(&mut self, key: Key) -> u64 {
        let (frame, new) = self.cache.page(key);
        if new {
            for at in self.cache.mappings_of(key.guest) {
                self.cache.write_protect(at);
            }
        }
        frame
    }

    fn flush(&mut self) {
        self.cache.clear();
        self.counters.flushes += 1;
    }
}

/// The guest-physical address an access went to.
fn physical<M: GuestMemoryBackend>(memory: &M, reached: Reached) -> u64 {
    match reached {
        Reached::Emulated(physical) => physical,
        Reached::Host(host) => memory
            .iter()
            .find_map(|region| {
                let first = memory.get_host_address(region.start_addr()).ok()? as u64;
                let offset = host.checked_sub(first).filter(|&offset| offset < region.len())?;
                Some(region.start_addr().0 + offset)
            })
            .expect("the shadow maps nothing but the guest's memory"),
    }
}
