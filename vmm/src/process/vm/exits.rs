//! How often ring 3 was left, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::vcpu::Exit;

/// Counters of one VM; every vCPU's thread adds, anyone reads.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; 6]);

/// The exits of a VM, for `inspect` and `stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// [`Exit::Syscall`].
    pub system_calls: u64,
    /// [`Exit::PageFault`].
    pub page_faults: u64,
    /// [`Exit::Fault`].
    pub other_faults: u64,
    /// [`Exit::Restored`].
    pub handler_ends: u64,
    /// [`Exit::Interrupted`].
    pub kicks: u64,
    /// [`Exit::NoPage`].
    pub missing_pages: u64,
}

impl Counts {
    /// One more.
    pub fn add(&self, exit: Exit) {
        let index = match exit {
            Exit::Syscall => 0,
            Exit::PageFault(_) => 1,
            Exit::Fault(_) => 2,
            Exit::Restored => 3,
            Exit::Interrupted => 4,
            Exit::NoPage => 5,
        };
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    /// All so far.
    pub fn get(&self) -> Exits {
        let [system_calls, page_faults, other_faults, handler_ends, kicks, missing_pages] =
            self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Exits { system_calls, page_faults, other_faults, handler_ends, kicks, missing_pages }
    }
}
