//! A guest-virtual address followed twice: by our own walker, and by KVM.

use std::fmt;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::errno;

use crate::paging::mode::NotLongMode;
use crate::paging::walk::End;
use crate::paging::{Access, Fault, Mode, Operation, Privilege, Translation};

/// EFLAGS.AC: with it set, SMAP keeps the supervisor from nothing.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// How often the address is followed if the answers differ: another vCPU may have changed the tables in between.
const ATTEMPTS: u32 = 3;

/// Why an address cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vCPU's registers cannot be read.
    #[error("cannot {attempt}: {error}")]
    Kvm {
        /// What was attempted.
        attempt: &'static str,
        /// What KVM said.
        error: errno::Error,
    },
    /// It does not use the paging that can be followed.
    #[error(transparent)]
    Mode(#[from] NotLongMode),
}

/// A translation with KVM's own answer beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The walker's.
    pub translation: Translation,
    /// What a supervisor's read meets as the walker has it: KVM translates for such a read.
    pub fault: Option<Fault>,
    /// What `KVM_TRANSLATE` says: the guest-physical address, if any.
    pub kvm: Option<u64>,
    /// How the two compare.
    pub verdict: Verdict,
}

/// How the walker's and KVM's answer compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// They are the same.
    Agrees,
    /// They are not.
    Differs,
    /// Not comparable: `KVM_TRANSLATE` does not look at the bits that make an address non-canonical.
    NotComparable,
}

/// Follows `address` through the tables `vcpu` uses now, and asks KVM to do so too.
pub fn checked<M: GuestMemoryBackend>(vcpu: &VcpuFd, memory: &M, address: u64) -> Result<Checked, Error> {
    let failed = |attempt| move |error| Error::Kvm { attempt, error };
    let special = vcpu.get_sregs().map_err(failed("read the vCPU's special registers"))?;
    let general = vcpu.get_regs().map_err(failed("read the vCPU's registers"))?;
    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the vCPU's cpuid leaves"))?;
    let (physical_bits, huge_pages) = addressing(&cpuid);
    let mode = Mode::from_registers(&special, physical_bits, huge_pages)?;
    let alignment_check = general.rflags & ALIGNMENT_CHECK != 0;
    let access = Access { operation: Operation::Read, privilege: Privilege::Supervisor { alignment_check } };
    let mut attempt = 1;
    loop {
        let translation = Translation::of(memory, &mode, address);
        let answer = vcpu.translate_gva(address).map_err(failed("ask KVM for a translation"))?;
        let read = translation.walk.check(&mode, access);
        let kvm = (answer.valid != 0).then_some(answer.physical_address);
        let verdict = match translation.walk.end {
            End::NonCanonical => Verdict::NotComparable,
            _ if read.ok() == kvm => Verdict::Agrees,
            _ => Verdict::Differs,
        };
        if verdict != Verdict::Differs || attempt == ATTEMPTS {
            return Ok(Checked { translation, fault: read.err(), kvm, verdict });
        }
        attempt += 1;
    }
}

/// MAXPHYADDR in bits, and whether there are 1 GiB pages.
fn addressing(cpuid: &CpuId) -> (u8, bool) {
    let leaf = |function| cpuid.as_slice().iter().find(|leaf| leaf.function == function);
    let physical_bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax as u8);
    (physical_bits, leaf(0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 26 != 0))
}

/// The translation, and a last line with KVM's answer.
impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}KVM             ", self.translation)?;
        let kvm = self.kvm.map_or_else(|| "none".to_owned(), |physical| format!("{physical:#018x}"));
        match (self.verdict, self.fault) {
            (Verdict::Agrees, None) => writeln!(f, "{kvm}  agrees"),
            (Verdict::Agrees, Some(fault)) => writeln!(f, "{kvm}, agrees: to a read in ring 0, {fault}"),
            (Verdict::Differs, None) => writeln!(f, "{kvm}  DIFFERS"),
            (Verdict::Differs, Some(fault)) => writeln!(f, "{kvm}  DIFFERS: to a read in ring 0, {fault}"),
            (Verdict::NotComparable, _) => writeln!(f, "not comparable: it does not look at the unused upper bits"),
        }
    }
}
