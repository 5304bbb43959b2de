//! The registers that decide how a vCPU translates addresses (4.1 "Paging modes and control bits").

use kvm_bindings::kvm_sregs;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::entry::{Entry, Level};

/// Control register and EFER bits by their names in the manuals.
const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
pub(crate) const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// The vCPU does not use 4-level or 5-level paging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "cannot translate: the vCPU is not in long mode with paging on (CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x}); \
     only 4-level and 5-level paging are supported, try again when the guest has started"
)]
pub struct NotLongMode {
    /// CR0 as found.
    pub cr0: u64,
    /// CR4 as found.
    pub cr4: u64,
    /// `IA32_EFER` as found.
    pub efer: u64,
}

/// What decides a translation besides the tables themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mode {
    /// Physical address of the root structure: CR3 without its flags.
    pub root: u64,
    /// CR4.LA57: 57-bit addresses and five levels.
    pub five_level: bool,
    /// CR0.WP: supervisor writes heed read-only pages.
    pub write_protect: bool,
    /// EFER.NXE: bit 63 forbids execution; without it bit 63 is reserved.
    pub no_execute: bool,
    /// CR4.SMEP: the supervisor cannot execute user pages.
    pub smep: bool,
    /// CR4.SMAP: the supervisor cannot read or write user pages unless EFLAGS.AC is set.
    pub smap: bool,
    /// MAXPHYADDR in bits (CPUID `0x8000_0008`, EAX bits 7:0), at most 52.
    pub physical_bits: u8,
    /// Whether a PDPT may map 1 GiB pages (CPUID `0x8000_0001`, EDX bit 26).
    pub huge_pages: bool,
}

impl Mode {
    /// The mode a Linux kernel or the process guest runs in: 4 levels, write protection and no-execute on.
    pub fn long(root: u64) -> Self {
        Self {
            root,
            five_level: false,
            write_protect: true,
            no_execute: true,
            smep: false,
            smap: false,
            physical_bits: 46,
            huge_pages: true,
        }
    }

    /// The mode a vCPU's special registers say it is in.
    ///
    /// # Errors
    /// [`NotLongMode`] where paging is off or the vCPU uses 32-bit or PAE paging.
    pub fn from_registers(registers: &kvm_sregs, physical_bits: u8, huge_pages: bool) -> Result<Self, NotLongMode> {
        let kvm_sregs { cr0, cr3, cr4, efer, .. } = *registers;
        if cr0 & CR0_PG == 0 || cr4 & CR4_PAE == 0 || efer & EFER_LMA == 0 {
            return Err(NotLongMode { cr0, cr4, efer });
        }
        Ok(Self {
            root: cr3 & Entry::ADDRESS,
            five_level: cr4 & CR4_LA57 != 0,
            write_protect: cr0 & CR0_WP != 0,
            no_execute: efer & EFER_NXE != 0,
            smep: cr4 & CR4_SMEP != 0,
            smap: cr4 & CR4_SMAP != 0,
            physical_bits: physical_bits.min(52),
            huge_pages,
        })
    }

    /// The level of the root structure.
    pub fn root_level(&self) -> Level {
        if self.five_level { Level::Pml5 } else { Level::Pml4 }
    }

    /// Whether `address` is canonical: the bits above those translated all equal the highest of them.
    pub fn is_canonical(&self, address: u64) -> bool {
        let unused = if self.five_level { 64 - 57 } else { 64 - 48 };
        ((address << unused).cast_signed() >> unused).cast_unsigned() == address
    }

    /// The bits that must be clear in a present `entry` of `level` (4.5, tables 4-14 to 4-20).
    pub fn reserved_bits(&self, level: Level, entry: Entry) -> u64 {
        let above_physical = Entry::ADDRESS & !((1 << self.physical_bits) - 1);
        let no_execute = if self.no_execute { 0 } else { Entry::NO_EXECUTE };
        let large = match level {
            Level::Pml5 | Level::Pml4 => Entry::LARGE,
            Level::Pdpt if !self.huge_pages => Entry::LARGE,
            // In an entry that maps a large page bit 12 is the PAT's third index bit, what follows must be clear.
            Level::Pdpt | Level::Pd if entry.has(Entry::LARGE) => (level.span() - 1) & !0x1fff,
            _ => 0,
        };
        above_physical | no_execute | large
    }
}
