//! The shadow pages: which guest table each one copies, who refers to it, and which guest frames its entries map.

use std::collections::{BTreeSet, HashMap};

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::super::entry::{ENTRIES, Entry, Level, PAGE_SIZE};
use super::super::tables::{FramePool, Frames as _};
use super::super::walk::read;

/// What a shadow page stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// The guest frame of the table; for a direct page the guest-physical address its first entry maps.
    pub guest: u64,
    /// The level it is used at. One guest frame may serve as a table of several levels.
    pub level: Level,
    /// A part of a large page, with no guest table behind it.
    pub direct: bool,
}

impl Key {
    /// The keys of a guest frame that serves as a table, one for each level.
    pub fn tables(guest: u64) -> [Self; 5] {
        [Level::Pml5, Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt].map(|level| Self { guest, level, direct: false })
    }
}

/// One shadow page.
#[derive(Debug)]
struct Page {
    key: Key,
    /// Addresses of the shadow entries that refer to it.
    parents: BTreeSet<u64>,
}

/// All shadow pages and the maps between them and the guest's frames.
#[derive(Debug)]
pub(super) struct Cache {
    /// The memory that holds the shadow tables; nothing of the guest is in it.
    pub memory: GuestMemoryMmap,
    frames: FramePool,
    /// Shadow frame to page.
    pages: HashMap<u64, Page>,
    /// Key to shadow frame.
    frames_by_key: HashMap<Key, u64>,
    /// The reverse map: guest frame to the addresses of the shadow entries that map it, and back.
    mapped_by: HashMap<u64, BTreeSet<u64>>,
    maps: HashMap<u64, u64>,
}

impl Cache {
    /// Room for `pages` shadow pages.
    pub fn new(pages: u64) -> Result<Self, vm_memory::mmap::FromRangesError> {
        let bytes = pages * PAGE_SIZE;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)])?;
        let (pages, frames_by_key, mapped_by, maps) = Default::default();
        Ok(Self { memory, frames: FramePool::new(0, bytes), pages, frames_by_key, mapped_by, maps })
    }

    /// Shadow pages that can still be made.
    pub fn available(&self) -> u64 {
        self.frames.available()
    }

    /// Forgets every page.
    pub fn clear(&mut self) {
        for (frame, _) in self.pages.drain() {
            self.frames.free(frame);
        }
        self.frames_by_key.clear();
        self.mapped_by.clear();
        self.maps.clear();
    }

    /// The shadow page for `key`, made empty if there is none, and whether it was made.
    pub fn page(&mut self, key: Key) -> (u64, bool) {
        if let Some(&frame) = self.frames_by_key.get(&key) {
            return (frame, false);
        }
        let frame = self.frames.allocate().expect("the caller made room");
        let zeroes = [0; PAGE_SIZE as usize];
        self.memory.write_slice(&zeroes, GuestAddress(frame)).expect("the pool lies within the memory");
        self.pages.insert(frame, Page { key, parents: BTreeSet::new() });
        self.frames_by_key.insert(key, frame);
        (frame, true)
    }

    /// Whether a guest frame is shadowed as a table of any level.
    pub fn is_table(&self, guest: u64) -> bool {
        Key::tables(guest).iter().any(|key| self.frames_by_key.contains_key(key))
    }

    /// The shadow page for `key`, if there is one.
    pub fn get(&self, key: Key) -> Option<u64> {
        self.frames_by_key.get(&key).copied()
    }

    /// Makes the entry at `at` refer to the shadow page `child`, with the `rights` of the guest's entry.
    pub fn link(&mut self, at: u64, child: u64, rights: u64) {
        if self.entry(at).has(Entry::PRESENT) && self.entry(at).table() != child {
            self.drop_entry(at);
        }
        self.pages.get_mut(&child).expect("the child was just made or found").parents.insert(at);
        self.store(at, Entry(child | rights));
    }

    /// Makes the entry at `at` map the host page that backs the guest frame `guest`.
    pub fn map(&mut self, at: u64, guest: u64, entry: Entry) {
        self.drop_entry(at);
        self.mapped_by.entry(guest).or_default().insert(at);
        self.maps.insert(at, guest);
        self.store(at, entry);
    }

    /// The shadow entries that map a guest frame.
    pub fn mappings_of(&self, guest: u64) -> Vec<u64> {
        self.mapped_by.get(&guest).into_iter().flatten().copied().collect()
    }

    /// Forbids writes through the entry at `at`.
    pub fn write_protect(&mut self, at: u64) {
        let entry = self.entry(at);
        self.store(at, Entry(entry.0 & !Entry::WRITABLE));
    }

    /// Clears the entry at `at`, and frees the pages that nothing refers to any more.
    pub fn drop_entry(&mut self, at: u64) {
        let entry = self.entry(at);
        if !entry.has(Entry::PRESENT) {
            return;
        }
        self.store(at, Entry::default());
        if let Some(guest) = self.maps.remove(&at) {
            let entries = self.mapped_by.get_mut(&guest).expect("both directions are kept together");
            entries.remove(&at);
            if entries.is_empty() {
                self.mapped_by.remove(&guest);
            }
            return;
        }
        let child = entry.table();
        let page = self.pages.get_mut(&child).expect("an entry that maps nothing refers to a page");
        page.parents.remove(&at);
        if page.parents.is_empty() {
            self.drop_page(child);
        }
    }

    /// Frees a page and what only it refers to. The recursion is as deep as there are levels.
    fn drop_page(&mut self, frame: u64) {
        for index in 0..ENTRIES {
            self.drop_entry(frame + index * 8);
        }
        let page = self.pages.remove(&frame).expect("a page is dropped once");
        self.frames_by_key.remove(&page.key);
        self.frames.free(frame);
    }

    /// The entry at `at`.
    pub fn entry(&self, at: u64) -> Entry {
        read(&self.memory, at).expect("shadow entries lie within the memory")
    }

    fn store(&self, at: u64, entry: Entry) {
        self.memory.write_obj(entry.0, GuestAddress(at)).expect("shadow entries lie within the memory");
    }
}
