//! An access to memory, and the fault it may end in (4.6 "Access rights", 4.7 "Page-fault exceptions").

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::entry::Level;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches an instruction.
    Fetch,
}

/// In which mode an access is made (4.6: "supervisor-mode access", "user-mode access").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// With a current privilege level of 3.
    User,
    /// With a current privilege level below 3, or implicitly (a descriptor table, a task's I/O bitmap).
    Supervisor {
        /// EFLAGS.AC is set and the access is explicit: SMAP does not apply.
        alignment_check: bool,
    },
}

impl Privilege {
    /// Supervisor mode with EFLAGS.AC clear.
    pub const SUPERVISOR: Self = Self::Supervisor { alignment_check: false };
}

/// One access to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// What it does.
    pub operation: Operation,
    /// In which mode.
    pub privilege: Privilege,
}

impl Access {
    /// An access from ring 3.
    pub fn user(operation: Operation) -> Self {
        Self { operation, privilege: Privilege::User }
    }

    /// An access from ring 0 with EFLAGS.AC clear.
    pub fn supervisor(operation: Operation) -> Self {
        Self { operation, privilege: Privilege::SUPERVISOR }
    }
}

/// A page fault's error code (4.7, figure 4-12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Every entry was present: the access was against the rights, or a reserved bit was set.
    pub const PRESENT: u32 = 1;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (said only where EFER.NXE or CR4.SMEP is set).
    pub const FETCH: u32 = 1 << 4;

    /// Whether `bit` is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bits) = *self;
        write!(f, "{bits:#x}: {}", if self.has(Self::PRESENT) { "protection" } else { "not present" })?;
        for (bit, name) in [
            (Self::WRITE, "write"),
            (Self::USER, "user"),
            (Self::RESERVED, "reserved bit"),
            (Self::FETCH, "instruction fetch"),
        ] {
            if self.has(bit) {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

/// Why an access does not reach memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Error)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `#GP`: the address is not canonical, no table is read.
    #[error("the address is not canonical (#GP)")]
    NonCanonical,
    /// `#PF` with an error code.
    #[error("page fault ({0})")]
    Page(ErrorCode),
    /// A paging structure or its entry lies outside the guest's memory. A processor would read what a bus without
    /// a device gives; a KVM without hardware paging refuses. No guest that is sound has such tables.
    #[error("the {level} entry at guest-physical {address:#x} is outside the guest's memory")]
    OutsideMemory {
        /// The level that could not be read.
        level: Level,
        /// Guest-physical address of the entry.
        address: u64,
    },
}
