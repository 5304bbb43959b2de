//! A walk through the guest's page tables, as the processor makes it (4.5 to 4.8).

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory as _};

use super::access::{Access, ErrorCode, Fault, Operation, Privilege};
use super::entry::{Entry, Level, PageSize, Target};
use super::mode::Mode;

/// One entry that a walk read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The level of the structure it stands in.
    pub level: Level,
    /// Guest-physical address of the entry.
    pub address: u64,
    /// Its value.
    pub entry: Entry,
}

/// The page a walk ended at, with the rights of all its entries together (4.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Guest-physical address of the page.
    pub address: u64,
    /// Its size.
    pub size: PageSize,
    /// The U/S flag is set in every entry: a user-mode address.
    pub user: bool,
    /// The R/W flag is set in every entry.
    pub writable: bool,
    /// The XD flag is clear in every entry.
    pub executable: bool,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// At a page.
    Page(Page),
    /// At an entry that is not present, the last of the steps.
    NotPresent,
    /// At an entry with reserved bits set, the last of the steps; these are the bits.
    Reserved(u64),
    /// Before it began: the address is not canonical.
    NonCanonical,
    /// At an entry that lies outside the guest's memory.
    OutsideMemory {
        /// The level that could not be read.
        level: Level,
        /// Guest-physical address of the entry.
        address: u64,
    },
}

/// A walk: every entry read, and where it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// The guest-virtual address.
    pub address: u64,
    /// The entries read, from the root down.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: End,
}

/// Walks the tables in `memory` for `address` without touching accessed or dirty flags.
pub fn walk<M: GuestMemoryBackend>(memory: &M, mode: &Mode, address: u64) -> Walk {
    let mut steps = Vec::with_capacity(mode.root_level() as usize);
    if !mode.is_canonical(address) {
        return Walk { address, steps, end: End::NonCanonical };
    }
    let mut rights = Entry::WRITABLE | Entry::USER;
    let mut forbidden = 0;
    let mut table = mode.root;
    let mut level = mode.root_level();
    let end = loop {
        let at = table + level.index(address) * 8;
        let Some(entry) = read(memory, at) else { break End::OutsideMemory { level, address: at } };
        steps.push(Step { level, address: at, entry });
        if !entry.has(Entry::PRESENT) {
            break End::NotPresent;
        }
        let reserved = entry.0 & mode.reserved_bits(level, entry);
        if reserved != 0 {
            break End::Reserved(reserved);
        }
        rights &= entry.0;
        forbidden |= entry.0 & Entry::NO_EXECUTE;
        match entry.target(level) {
            Target::Table(below) => {
                table = entry.table();
                level = below;
            }
            Target::Page(size) => {
                break End::Page(Page {
                    address: entry.page(size),
                    size,
                    user: rights & Entry::USER != 0,
                    writable: rights & Entry::WRITABLE != 0,
                    executable: forbidden == 0,
                });
            }
        }
    };
    Walk { address, steps, end }
}

/// Makes an access as the processor does: walks, checks the rights, sets accessed and dirty flags, and gives the
/// guest-physical address.
///
/// A processor may also set accessed flags in the upper entries of a walk that fails (4.8); this one, like KVM, does not.
pub fn access<M: GuestMemoryBackend>(memory: &M, mode: &Mode, address: u64, access: Access) -> Result<u64, Fault> {
    loop {
        let walk = walk(memory, mode, address);
        let physical = walk.check(mode, access)?;
        if walk.mark(memory, access.operation) {
            return Ok(physical);
        }
    }
}

impl Walk {
    /// The guest-physical address if the walk reached a page.
    pub fn physical(&self) -> Option<u64> {
        match self.end {
            End::Page(page) => Some(page.address | (self.address & (page.size.bytes() - 1))),
            _ => None,
        }
    }

    /// The guest-physical address if `access` is allowed, otherwise the fault it raises (4.6.1, 4.7).
    pub fn check(&self, mode: &Mode, access: Access) -> Result<u64, Fault> {
        let mut code = match access.operation {
            Operation::Write => ErrorCode::WRITE,
            Operation::Fetch if mode.no_execute || mode.smep => ErrorCode::FETCH,
            Operation::Read | Operation::Fetch => 0,
        };
        if access.privilege == Privilege::User {
            code |= ErrorCode::USER;
        }
        match self.end {
            End::NonCanonical => Err(Fault::NonCanonical),
            End::OutsideMemory { level, address } => Err(Fault::OutsideMemory { level, address }),
            End::NotPresent => Err(Fault::Page(ErrorCode(code))),
            End::Reserved(_) => Err(Fault::Page(ErrorCode(code | ErrorCode::PRESENT | ErrorCode::RESERVED))),
            End::Page(page) if !page.allows(mode, access) => Err(Fault::Page(ErrorCode(code | ErrorCode::PRESENT))),
            End::Page(page) => Ok(page.address | (self.address & (page.size.bytes() - 1))),
        }
    }

    /// Sets the accessed flag in every entry and, for a write, the dirty flag in the last (4.8). `false` where an entry
    /// changed since it was read: the walk has to be made again.
    pub fn mark<M: GuestMemoryBackend>(&self, memory: &M, operation: Operation) -> bool {
        self.steps.iter().enumerate().all(|(at, step)| {
            let dirty = operation == Operation::Write && at + 1 == self.steps.len();
            let wanted = step.entry.0 | Entry::ACCESSED | if dirty { Entry::DIRTY } else { 0 };
            wanted == step.entry.0 || exchange(memory, step.address, step.entry.0, wanted)
        })
    }
}

impl Page {
    /// Whether the rights allow `access` (4.6.1 "Determination of access rights").
    pub fn allows(&self, mode: &Mode, access: Access) -> bool {
        let executable = self.executable || !mode.no_execute;
        match (access.privilege, access.operation) {
            (Privilege::User, Operation::Read) => self.user,
            (Privilege::User, Operation::Write) => self.user && self.writable,
            (Privilege::User, Operation::Fetch) => self.user && executable,
            (Privilege::Supervisor { .. }, Operation::Fetch) => executable && !(self.user && mode.smep),
            (Privilege::Supervisor { alignment_check }, operation) => {
                let reachable = !self.user || !mode.smap || alignment_check;
                let writable = self.writable || !mode.write_protect;
                reachable && (operation == Operation::Read || writable)
            }
        }
    }
}

/// Reads the entry at guest-physical `address`; `None` outside memory.
pub(super) fn read<M: GuestMemoryBackend>(memory: &M, address: u64) -> Option<Entry> {
    let slice = memory.get_slice(GuestAddress(address), size_of::<u64>()).ok()?;
    let cell = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
    Some(Entry(cell.load(Ordering::Acquire)))
}

/// Replaces the entry at `address` if it is still `current`.
fn exchange<M: GuestMemoryBackend>(memory: &M, address: u64, current: u64, new: u64) -> bool {
    let Ok(slice) = memory.get_slice(GuestAddress(address), size_of::<u64>()) else { return false };
    let Ok(cell) = slice.get_atomic_ref::<AtomicU64>(0) else { return false };
    cell.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
}
