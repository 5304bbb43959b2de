//! How the end of the machine is asked for, from any thread.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why the machine stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// The guest turned itself off.
    PowerOff,
    /// The guest asked for a reset: a reboot, or the end of a panic nobody was told about.
    Reset,
    /// The guest's kernel reported a panic.
    Panic,
    /// A vCPU had an exception it could not even report to the guest.
    TripleFault,
    /// The host asked for it.
    Asked,
    /// KVM could not go on with a vCPU.
    Failed(String),
}

/// Shared by vCPUs, devices and the event loop.
pub struct Control {
    stop: OnceLock<Stop>,
    event: EventFd,
}

impl Control {
    /// Nothing asked for yet.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { stop: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Asks for the end. The first reason counts.
    pub fn stop(&self, reason: Stop) {
        if self.stop.set(reason).is_ok() {
            // Only a full counter could refuse, and then the event is readable already.
            let _ = self.event.write(1);
        }
    }

    /// Why the machine is to stop, if it is.
    pub fn stopped(&self) -> Option<&Stop> {
        self.stop.get()
    }

    /// Readable once the end is asked for.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
