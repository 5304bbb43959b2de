//! Exits from the guest to the VMM, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Why a vCPU came back from `KVM_RUN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `in`.
    PortRead,
    /// `out`.
    PortWrite,
    /// A read of memory that is a device's, or nobody's.
    MmioRead,
    /// A write to such memory.
    MmioWrite,
    /// `rdmsr` of a register KVM does not know or the filter keeps back.
    MsrRead,
    /// `wrmsr` of one.
    MsrWrite,
    /// `hlt`, where the interrupt controller is not KVM's.
    Halt,
    /// Another thread wanted the vCPU.
    Kick,
    /// The guest stopped: triple fault, or a shutdown event.
    Shutdown,
    /// KVM could not go on.
    Failed,
}

const REASONS: usize = Reason::Failed as usize + 1;

/// Counters of one vCPU; its thread adds, anyone reads.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; REASONS]);

impl Counts {
    /// One more.
    pub fn add(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// The exits of a whole machine, for `inspect` and `stats`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// [`Reason::PortRead`].
    pub port_reads: u64,
    /// [`Reason::PortWrite`].
    pub port_writes: u64,
    /// [`Reason::MmioRead`].
    pub mmio_reads: u64,
    /// [`Reason::MmioWrite`].
    pub mmio_writes: u64,
    /// [`Reason::MsrRead`].
    pub msr_reads: u64,
    /// [`Reason::MsrWrite`].
    pub msr_writes: u64,
    /// [`Reason::Halt`].
    pub halts: u64,
    /// [`Reason::Kick`].
    pub kicks: u64,
    /// [`Reason::Shutdown`].
    pub shutdowns: u64,
    /// [`Reason::Failed`].
    pub failures: u64,
}

impl Exits {
    /// The sum over `vcpus`.
    pub fn sum<'a>(vcpus: impl IntoIterator<Item = &'a Counts>) -> Self {
        let mut exits = Self::default();
        for counts in vcpus {
            exits.port_reads += counts.get(Reason::PortRead);
            exits.port_writes += counts.get(Reason::PortWrite);
            exits.mmio_reads += counts.get(Reason::MmioRead);
            exits.mmio_writes += counts.get(Reason::MmioWrite);
            exits.msr_reads += counts.get(Reason::MsrRead);
            exits.msr_writes += counts.get(Reason::MsrWrite);
            exits.halts += counts.get(Reason::Halt);
            exits.kicks += counts.get(Reason::Kick);
            exits.shutdowns += counts.get(Reason::Shutdown);
            exits.failures += counts.get(Reason::Failed);
        }
        exits
    }
}
