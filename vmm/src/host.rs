//! What this host's KVM can do: how it translates guest memory, and whether a Linux guest can run.

use std::arch::x86_64::__cpuid;
use std::fs::{self, File};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use crate::boot::acpi::VCPUS_MAX;

/// How guest-physical addresses become the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Translation {
    /// Intel's extended page tables: the processor walks the guest's tables and the host's.
    Ept,
    /// AMD's nested page tables: likewise.
    Npt,
    /// VT-x or AMD-V without second-level tables: KVM keeps shadow page tables.
    Shadow,
    /// No hardware virtualization at all: a KVM that runs guests in ring 3 over shadow page tables (PVM).
    Pvm,
}

/// What `berth info` says of `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// How guest memory is translated.
    pub translation: Translation,
    /// The most vCPUs a machine can have.
    pub max_vcpus: usize,
    /// How many the host recommends at most: its own processors.
    pub recommended_vcpus: usize,
    /// How many memory slots a machine can have.
    pub max_slots: usize,
    /// Bytes of memory in the host.
    pub memory: u64,
}

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `/dev/kvm`, or no right to it.
    #[error(
        "opening /dev/kvm: {0}; microVMs need KVM: enable virtualization in the firmware, load kvm_intel or kvm_amd, and be root or in its group"
    )]
    Open(io::Error),
    /// Another interface than the one stable since 2007.
    #[error("/dev/kvm speaks version {0} of its interface, 12 is the one in use")]
    Version(i32),
    /// A capability every machine here relies on is missing.
    #[error("this host's KVM lacks {0}; it needs a newer kernel")]
    Lacks(&'static str),
    /// A Linux guest cannot run.
    #[error(
        "a Linux guest cannot run here: this host's KVM has no hardware virtualization (PVM); a guest without a kernel can, with --guest process"
    )]
    NoLinux,
}

/// Linux' capabilities every machine uses, with the names in its documentation.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

/// The only version of the interface there has been.
const API_VERSION: i32 = 12;

/// Opens `/dev/kvm`.
pub fn open() -> Result<OwnedFd, Error> {
    File::options().read(true).write(true).open("/dev/kvm").map(OwnedFd::from).map_err(Error::Open)
}

/// Wraps a descriptor of `/dev/kvm` and checks that it can do what every machine needs.
pub fn kvm(descriptor: OwnedFd) -> Result<Kvm, Error> {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is owned, and given away here.
    let kvm = unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(Error::Version(version));
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(Error::Lacks(name)),
        None => Ok(kvm),
    }
}

impl Host {
    /// Asks `kvm` and, for what it does not tell, the processor and `/sys`.
    pub fn probe(kvm: &Kvm) -> Self {
        Self {
            translation: translation(extensions(), Path::new("/")),
            max_vcpus: kvm.get_max_vcpus().min(VCPUS_MAX),
            recommended_vcpus: kvm.get_nr_vcpus(),
            max_slots: kvm.get_nr_memslots(),
            memory: memory(),
        }
    }

    /// Whether a guest with a kernel of its own can run. On PVM the guest's ring 0 is emulated, and the emulator lacks what
    /// kernels use.
    pub fn runs_linux(&self) -> Result<(), Error> {
        runs_linux()
    }
}

/// As [`Host::runs_linux`], where there is no `/sys` to probe the rest.
pub fn runs_linux() -> Result<(), Error> {
    if has_hardware_virtualization() { Ok(()) } else { Err(Error::NoLinux) }
}

/// Whether guests have a ring 0 of the processor's: see [`Translation::Pvm`] for where they do not.
pub fn has_hardware_virtualization() -> bool {
    extensions() != (false, false)
}

/// Whether the processor has hardware virtualization of Intel's and of AMD's kind, as `cpuid` says: no file is needed, so
/// it works in an empty root as well.
///
/// Inside a virtual machine without nested virtualization there is neither, and then a working `/dev/kvm` can only be one
/// that needs neither: PVM.
fn extensions() -> (bool, bool) {
    let (vmx, svm) = (__cpuid(1).ecx & 1 << 5, __cpuid(0x8000_0001).ecx & 1 << 2);
    (vmx != 0, svm != 0)
}

/// KVM has no call that says how it translates; its modules' parameters, readable by anyone, do.
fn translation((vmx, svm): (bool, bool), root: &Path) -> Translation {
    let parameter = |name: &str| {
        fs::read_to_string(root.join("sys/module").join(name)).is_ok_and(|value| ["Y", "1"].contains(&value.trim()))
    };
    match (vmx, svm) {
        (false, false) => Translation::Pvm,
        (true, _) if parameter("kvm_intel/parameters/ept") => Translation::Ept,
        (_, true) if parameter("kvm_amd/parameters/npt") => Translation::Npt,
        _ => Translation::Shadow,
    }
}

/// Bytes of memory in the host.
pub fn memory() -> u64 {
    // SAFETY: sysconf only reads.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(page).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(extensions: (bool, bool), parameters: &[(&str, &str)]) -> Translation {
        let root = tempfile::tempdir().unwrap();
        for (name, value) in parameters {
            let path = root.path().join("sys/module").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        translation(extensions, root.path())
    }

    #[test]
    fn the_processor_and_the_modules_parameters_tell_how_memory_is_translated() {
        let (intel, amd, neither) = ((true, false), (false, true), (false, false));
        assert_eq!(host(intel, &[("kvm_intel/parameters/ept", "Y\n")]), Translation::Ept);
        assert_eq!(host(intel, &[("kvm_intel/parameters/ept", "N\n")]), Translation::Shadow);
        assert_eq!(host(amd, &[("kvm_amd/parameters/npt", "1\n")]), Translation::Npt);
        assert_eq!(host(amd, &[("kvm_amd/parameters/npt", "0\n")]), Translation::Shadow);
        assert_eq!(host(neither, &[]), Translation::Pvm);
    }
}
