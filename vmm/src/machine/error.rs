//! Why a machine cannot be made or run.

use std::io;

use vmm_sys_util::errno;

use super::memory;
use crate::devices::bus::Overlap;
use crate::{boot, host};

/// Errors of [`super::Machine`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor in the configuration is not open.
    #[error("descriptor {descriptor} for {what} is not open: {source}")]
    Descriptor {
        /// What it is for.
        what: &'static str,
        /// Its number.
        descriptor: i32,
        /// What `fcntl(2)` said.
        source: io::Error,
    },
    /// The host's KVM.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// More or fewer vCPUs than possible.
    #[error("{asked} vCPUs were asked for; this host's KVM allows 1 to {max}")]
    Vcpus {
        /// What the configuration says.
        asked: u8,
        /// What KVM allows.
        max: usize,
    },
    /// Too little memory, too much, or no whole pages.
    #[error("{asked} bytes of memory were asked for; a guest can have {min} to {max}, in whole pages of 4096")]
    MemorySize {
        /// What the configuration says.
        asked: u64,
        /// The least a kernel can start in.
        min: u64,
        /// What the host has.
        max: u64,
    },
    /// More virtio devices than interrupt lines.
    #[error("{asked} virtio devices were asked for; a machine can have {max}")]
    Devices {
        /// How many the configuration comes to.
        asked: usize,
        /// How many there can be.
        max: usize,
    },
    /// The filter cannot be made or loaded.
    #[error("loading the VMM's seccomp filter: {0}; the kernel needs CONFIG_SECCOMP_FILTER")]
    Seccomp(berth_runtime::confine::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A call to KVM.
    #[error("{what}: {source}")]
    Kvm {
        /// What was attempted.
        what: &'static str,
        /// What KVM said.
        source: errno::Error,
    },
    /// Two devices at one address.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A call to the host's kernel.
    #[error("{what}: {source}")]
    Os {
        /// What was attempted.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Puts what was attempted before an error of KVM or of the host.
pub trait Attempt<T> {
    /// `what` reads as "creating the VM".
    fn attempt(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Attempt<T> for Result<T, errno::Error> {
    fn attempt(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Kvm { what, source })
    }
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Os { what, source })
    }
}
