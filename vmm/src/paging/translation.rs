//! The whole way of an address, for `berth vm translate`: page tables, then memory slots.

use std::fmt;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion as _};

use super::access::{Access, Fault, Operation};
use super::mode::Mode;
use super::walk::{End, Walk, walk};

/// The memory slot an address falls into, and where on the host that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Which slot, in the order of guest-physical addresses.
    pub index: usize,
    /// Guest-physical address of its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Host-virtual address of its first byte, in the VMM's address space.
    pub host: u64,
}

/// What accesses of the six kinds would meet: `None` where they are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// From ring 3.
    pub user: Faults,
    /// From ring 0 with EFLAGS.AC clear.
    pub supervisor: Faults,
}

/// The faults of the three operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Of a read.
    pub read: Option<Fault>,
    /// Of a write.
    pub write: Option<Fault>,
    /// Of an instruction fetch.
    pub fetch: Option<Fault>,
}

/// A guest-virtual address followed to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The registers that governed the walk.
    pub mode: Mode,
    /// The walk through the guest's tables.
    pub walk: Walk,
    /// What each kind of access would meet.
    pub rights: Rights,
    /// The guest-physical address, if the walk reached a page.
    pub guest_physical: Option<u64>,
    /// The slot that holds it; `None` for device memory and for nothing.
    pub slot: Option<Slot>,
    /// The host-virtual address in the VMM.
    pub host_virtual: Option<u64>,
}

impl Translation {
    /// Follows `address` through the tables in `memory` and its slots. Changes nothing.
    pub fn of<M: GuestMemoryBackend>(memory: &M, mode: &Mode, address: u64) -> Self {
        let walk = walk(memory, mode, address);
        let faults = |access: fn(Operation) -> Access| Faults {
            read: walk.check(mode, access(Operation::Read)).err(),
            write: walk.check(mode, access(Operation::Write)).err(),
            fetch: walk.check(mode, access(Operation::Fetch)).err(),
        };
        let rights = Rights { user: faults(Access::user), supervisor: faults(Access::supervisor) };
        let guest_physical = walk.physical();
        let slot = guest_physical.and_then(|physical| slot(memory, physical));
        let host_virtual = guest_physical.zip(slot).map(|(physical, slot)| slot.host + (physical - slot.start));
        Self { mode: *mode, walk, rights, guest_physical, slot, host_virtual }
    }
}

/// The slot that holds a guest-physical address.
pub fn slot<M: GuestMemoryBackend>(memory: &M, physical: u64) -> Option<Slot> {
    let (index, region) = memory
        .iter()
        .enumerate()
        .find(|(_, region)| (region.start_addr().0..=region.last_addr().0).contains(&physical))?;
    let start = region.start_addr();
    let host = memory.get_host_address(GuestAddress(start.0)).ok()?;
    Some(Slot { index, start: start.0, length: region.len(), host: host as u64 })
}

/// `rwx`, with a dash for what faults.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.read, 'r'), (self.write, 'w'), (self.fetch, 'x')];
        let text: String = letters.map(|(fault, letter)| if fault.is_none() { letter } else { '-' }).iter().collect();
        f.pad(&text)
    }
}

/// A table for people: one line a level, then the page, the slot and the host's address.
impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "guest-virtual   {:#018x}", self.walk.address)?;
        writeln!(f, "LEVEL  INDEX  ENTRY AT            VALUE               FLAGS")?;
        for step in &self.walk.steps {
            let (index, value) = (step.level.index(self.walk.address), step.entry.0);
            writeln!(f, "{:<5}  {index:>5}  {:#018x}  {value:#018x}  {}", step.level, step.address, step.entry)?;
        }
        match self.walk.end {
            End::Page(page) => {
                let Rights { user, supervisor } = self.rights;
                writeln!(
                    f,
                    "page            {:#018x}  {}, user {user}, supervisor {supervisor}",
                    page.address, page.size
                )?;
            }
            End::NotPresent => writeln!(f, "page            none: the last entry is not present")?,
            End::Reserved(bits) => {
                writeln!(f, "page            none: reserved bits {bits:#x} are set in the last entry")?;
            }
            End::NonCanonical => writeln!(f, "page            none: the address is not canonical")?,
            End::OutsideMemory { level, address } => {
                writeln!(f, "page            none: the {level} entry at {address:#x} is outside the guest's memory")?;
            }
        }
        if let Some(physical) = self.guest_physical {
            writeln!(f, "guest-physical  {physical:#018x}")?;
            match self.slot {
                Some(slot) => writeln!(
                    f,
                    "memory slot     {}: {:#x} to {:#x} at host {:#x}",
                    slot.index,
                    slot.start,
                    slot.start + slot.length,
                    slot.host
                )?,
                None => writeln!(f, "memory slot     none: device memory, or nothing")?,
            }
        }
        match self.host_virtual {
            Some(host) => writeln!(f, "host-virtual    {host:#018x}"),
            None => writeln!(f, "host-virtual    none"),
        }
    }
}
