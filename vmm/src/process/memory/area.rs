//! What stands in a range of addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::window::{MappedFile, SharedPages};
use crate::process::vm::layout;

/// Gap kept free below a stack that grows, as on Linux.
const STACK_GUARD: u64 = 256 * 4096;

/// The lowest address that is mapped, as `vm.mmap_min_addr` says on Linux.
pub const LOWEST: u64 = 0x1_0000;

/// What a program may do with an area.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub execute: bool,
}

impl Protection {
    /// From the bits of mmap(2).
    pub fn from_bits(bits: u64) -> Self {
        let has = |bit: i32| bits & bit as u64 != 0;
        Self { read: has(libc::PROT_READ), write: has(libc::PROT_WRITE), execute: has(libc::PROT_EXEC) }
    }

    /// Whether anything is allowed. The processor cannot forbid reads alone.
    pub fn any(self) -> bool {
        self.read || self.write || self.execute
    }
}

/// What an area's pages come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Zeroes, private to the process.
    Anonymous,
    /// Zeroes, shared with whoever has inherited the area; the offset is of the area's start.
    Shared(Arc<SharedPages>, u64),
    /// A file, from this offset; writes are private.
    File(Arc<MappedFile>, u64),
    /// A file, from this offset; writes go to it.
    SharedFile(Arc<MappedFile>, u64),
}

impl Source {
    /// The source as it is `bytes` further on.
    fn advanced(&self, bytes: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Shared(pages, offset) => Self::Shared(pages.clone(), offset + bytes),
            Self::File(file, offset) => Self::File(file.clone(), offset + bytes),
            Self::SharedFile(file, offset) => Self::SharedFile(file.clone(), offset + bytes),
        }
    }
}

/// A range of addresses with one source and one protection.
#[derive(Debug, Clone)]
pub struct Area {
    /// Its end.
    pub end: u64,
    /// What may be done with it.
    pub protection: Protection,
    /// What its pages come from.
    pub source: Source,
    /// It grows downwards as it is used: a stack.
    pub grows_down: bool,
    /// About how many pages of its own faults have brought.
    pub brought: u64,
}

impl Area {
    /// Whether writes stay with the process.
    pub fn is_private(&self) -> bool {
        matches!(self.source, Source::Anonymous | Source::File(..))
    }
}

/// Cuts the area that spans `at` in two.
pub fn split(areas: &mut BTreeMap<u64, Area>, at: u64) {
    let Some((&start, area)) = areas.range_mut(..at).next_back() else { return };
    if area.end <= at {
        return;
    }
    let right = Area { source: area.source.advanced(at - start), ..area.clone() };
    area.end = at;
    areas.insert(at, right);
}

/// The area that holds `address`, with its start.
pub fn find(areas: &BTreeMap<u64, Area>, address: u64) -> Option<(u64, &Area)> {
    let (&start, area) = areas.range(..=address).next_back()?;
    (address < area.end).then_some((start, area))
}

/// The highest free range of `length` bytes below where mappings begin.
pub fn place(areas: &BTreeMap<u64, Area>, length: u64) -> Option<u64> {
    let mut end = layout::MMAP_END;
    for (&start, area) in areas.range(..layout::MMAP_END).rev() {
        if area.end <= end && end - area.end >= length {
            break;
        }
        end = end.min(start.saturating_sub(if area.grows_down { STACK_GUARD } else { 0 }));
    }
    end.checked_sub(length).filter(|&start| start >= LOWEST)
}

/// Joins anonymous neighbours that are alike, so that a growing heap stays one area.
pub fn join(areas: &mut BTreeMap<u64, Area>, at: u64) {
    let Some(area) = areas.get(&at).cloned() else { return };
    let Some((_, left)) = areas.range_mut(..at).next_back() else { return };
    let alike = left.end == at && left.protection == area.protection && !left.grows_down && !area.grows_down;
    if alike && matches!((&left.source, &area.source), (Source::Anonymous, Source::Anonymous)) {
        left.end = area.end;
        left.brought = left.brought.max(area.brought);
        areas.remove(&at);
    }
}
