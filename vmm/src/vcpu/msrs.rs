//! Model-specific registers: those set before the start, and those kept from the guest.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, Msrs, kvm_enable_cap, kvm_msr_entry};
use kvm_ioctls::{MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vmm_sys_util::errno;

/// `IA32_MISC_ENABLE`, with fast string operations on: what a BIOS leaves there.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: enabled, everything write-back.
const MTRR_DEFAULT_TYPE: (u32, u64) = (0x2ff, 0x806);

/// A run of registers the guest is kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What no guest here has a use for: loading microcode, branch tracing, performance counters (none is offered by `cpuid`).
/// An access raises #GP in the guest and is counted.
pub const DENIED: &[Denied] = &[
    Denied { first: 0x79, count: 1 },
    Denied { first: 0xc1, count: 8 },
    Denied { first: 0x186, count: 8 },
    Denied { first: 0x38d, count: 4 },
    // AMD's counters, old and new.
    Denied { first: 0xc001_0000, count: 8 },
    Denied { first: 0xc001_0200, count: 12 },
];

/// Values every vCPU starts with.
pub fn initialise(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    let entries =
        [MISC_ENABLE, MTRR_DEFAULT_TYPE].map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    // Two entries always fit the wrapper.
    let msrs = Msrs::from_entries(&entries).map_err(|_| errno::Error::new(libc::EINVAL))?;
    // KVM stops at the first it does not know; a host without one of them is none the worse.
    vcpu.set_msrs(&msrs).map(|_| ())
}

/// Makes accesses to `denied` registers, and to those KVM does not know, exits to the VMM.
pub fn filter(vm: &VmFd, denied: &[Denied]) -> Result<(), errno::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = u64::from((MsrExitReason::Filter | MsrExitReason::Unknown).bits());
    vm.enable_cap(&cap)?;
    // A clear bit denies.
    let bitmaps: Vec<Vec<u8>> = denied.iter().map(|range| vec![0; range.count.div_ceil(8) as usize]).collect();
    let ranges: Vec<_> = denied
        .iter()
        .zip(&bitmaps)
        .map(|(range, bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: range.first,
            msr_count: range.count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
}
