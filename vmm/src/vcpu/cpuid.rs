//! What `cpuid` tells the guest: what KVM supports on this host, with the topology of the guest put in.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno;

/// Leaf 1: the timer that fires at a count of the time stamp counter, which KVM emulates on any host; with it the guest
/// need not measure the APIC timer against another clock.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1: Intel's hardware virtualization. No guest gets a hypervisor's tools: they are a large part of KVM to be
/// attacked, and of no use to what runs in a microVM.
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001, ECX: AMD's.
const SVM: u32 = 1 << 2;
/// Leaf 1: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const MULTITHREADED: u32 = 1 << 28;
/// Leaf 0x80000001, ECX: an AMD package with more than one core.
const AMD_MULTICORE: u32 = 1 << 1;

/// The host's supported leaves; the same for all vCPUs of all machines.
pub fn supported(kvm: &Kvm) -> Result<CpuId, errno::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// The leaves of vCPU `id` of `vcpus`. All vCPUs are cores of one package, one thread each.
pub fn template(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    // How many bits of the APIC number tell the cores of a package apart.
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    for leaf in cpuid.as_mut_slice() {
        adapt(leaf, id, vcpus, core_bits);
    }
    cpuid
}

fn adapt(leaf: &mut kvm_cpuid_entry2, id: u32, vcpus: u32, core_bits: u32) {
    match leaf.function {
        1 => {
            leaf.ebx = leaf.ebx & 0xffff | vcpus << 16 | id << 24;
            leaf.ecx = leaf.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
            set(&mut leaf.edx, MULTITHREADED, vcpus > 1);
        }
        // Intel's caches: none is shared by vCPUs but the last level; that many cores are in the package.
        4 if leaf.eax & 0x1f != 0 => {
            let shared = if leaf.eax >> 5 & 7 >= 3 { vcpus - 1 } else { 0 };
            leaf.eax = leaf.eax & 0x3fff | shared << 14 | ((1 << core_bits) - 1) << 26;
        }
        // No performance counters: none is offered, and the kernel need not set them up. No details of AMD's virtualization.
        0xa | 0x8000_000a => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        0xb | 0x1f => {
            let level = match leaf.index {
                0 => Some((0, 1, 1)),
                1 => Some((core_bits, vcpus, 2)),
                _ => None,
            };
            (leaf.eax, leaf.ebx, leaf.ecx) = match level {
                Some((shift, processors, kind)) => (shift, processors, leaf.index | kind << 8),
                None => (0, 0, leaf.index),
            };
            leaf.edx = id;
        }
        0x8000_0001 => {
            leaf.ecx &= !SVM;
            set(&mut leaf.ecx, AMD_MULTICORE, vcpus > 1);
        }
        0x8000_0008 => leaf.ecx = core_bits << 12 | (vcpus - 1),
        // AMD's caches, as Intel's above.
        0x8000_001d if leaf.eax & 0x1f != 0 => {
            let shared = if leaf.eax >> 5 & 7 >= 3 { vcpus - 1 } else { 0 };
            leaf.eax = leaf.eax & 0x3fff | shared << 14;
        }
        // One thread a core, one node.
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}
