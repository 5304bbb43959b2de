//! What makes up a vCPU, as plain serialisable data.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

/// Everything KVM keeps of one vCPU.
///
/// The order of [`VcpuState::restore`] matters: `cpuid` decides which registers exist, the local APIC needs its base from
/// the system registers, the deadline timer needs the APIC, and events come last since setting registers clears them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(clippy::unsafe_derive_deserialize, reason = "restoring checks what its one unsafe call relies on")]
pub struct VcpuState {
    /// General registers.
    pub regs: kvm_regs,
    /// System registers.
    pub sregs: kvm_sregs,
    /// The FPU's and vectors' registers: the 4 KiB of `KVM_GET_XSAVE`, as 32-bit words.
    pub xsave: Vec<u32>,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// Exceptions and interrupts under way.
    pub events: kvm_vcpu_events,
    /// Whether it runs, waits or is halted.
    pub mp_state: kvm_mp_state,
    /// The local APIC, if it is KVM's.
    pub lapic: Option<kvm_lapic_state>,
    /// Model-specific registers.
    pub msrs: Vec<kvm_msr_entry>,
    /// What `cpuid` says.
    pub cpuid: Vec<kvm_bindings::kvm_cpuid_entry2>,
}

impl VcpuState {
    /// Reads the state of `vcpu`, which must not be running.
    pub fn save(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, errno::Error> {
        Ok(Self {
            mp_state: vcpu.get_mp_state()?,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            xsave: vcpu.get_xsave()?.region.to_vec(),
            xcrs: vcpu.get_xcrs()?,
            debug: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic().ok(),
            msrs: read_msrs(kvm, vcpu)?,
            cpuid: vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec(),
            events: vcpu.get_vcpu_events()?,
        })
    }

    /// Writes the state into `vcpu`, a new one.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), errno::Error> {
        let cpuid = kvm_bindings::CpuId::from_entries(&self.cpuid).map_err(|_| errno::Error::new(libc::E2BIG))?;
        vcpu.set_cpuid2(&cpuid)?;
        vcpu.set_mp_state(self.mp_state)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        let region = self.xsave.as_slice().try_into().map_err(|_| errno::Error::new(libc::EINVAL))?;
        let xsave = kvm_xsave { region, ..Default::default() };
        // SAFETY: the structure is the one `save` read: KVM reads no further than its 4 KiB unless features beyond them were
        // enabled for the process, which nothing here does.
        unsafe { vcpu.set_xsave(&xsave) }?;
        vcpu.set_xcrs(&self.xcrs)?;
        vcpu.set_debug_regs(&self.debug)?;
        if let Some(lapic) = &self.lapic {
            vcpu.set_lapic(lapic)?;
        }
        for chunk in self.msrs.chunks(MSRS_AT_ONCE) {
            let msrs = Msrs::from_entries(chunk).map_err(|_| errno::Error::new(libc::E2BIG))?;
            vcpu.set_msrs(&msrs)?;
        }
        vcpu.set_vcpu_events(&self.events)
    }
}

/// Bounds the array handed to KVM in one call.
const MSRS_AT_ONCE: usize = 64;

/// Reads every register KVM names as worth saving. One that cannot be read (the host lists it, the guest's `cpuid` hides
/// it) is left out.
fn read_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, errno::Error> {
    let indices = kvm.get_msr_index_list()?;
    let mut rest: Vec<_> =
        indices.as_slice().iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut values = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let chunk = rest.len().min(MSRS_AT_ONCE);
        let mut msrs = Msrs::from_entries(&rest[..chunk]).map_err(|_| errno::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first it refuses.
        rest.drain(..(read + usize::from(read < chunk)));
    }
    Ok(values)
}
