//! The CPUID leaves programs see: what ring 3 can really use, and no leaf more, for each costs an exit.

use core::arch::x86_64::__cpuid_count;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const SIGNIFICANT_INDEX: u32 = 1;

/// Leaf 1, ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND.
const LEAF_1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// Leaf 7, EBX: BMI1, AVX2, SMEP (for CR4 alone), BMI2, ERMS, ADX, CLFLUSHOPT, CLWB, SHA.
const LEAF_7_EBX: u32 = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 29;
/// Leaf 7, EDX: FSRM.
const LEAF_7_EDX: u32 = 1 << 4;

/// The table, from the processor this runs on.
///
/// # Panics
/// Never: the table has fewer entries than KVM takes.
pub fn table() -> CpuId {
    let mut entries = Vec::new();
    let mut add = |function: u32, index: u32, flags: u32, change: &dyn Fn(&mut kvm_cpuid_entry2)| {
        let leaf = __cpuid_count(function, index);
        let (eax, ebx, ecx, edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx);
        let mut entry = kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() };
        change(&mut entry);
        entries.push(entry);
    };
    add(0, 0, 0, &|entry| entry.eax = 0xd);
    add(1, 0, 0, &|entry| entry.ecx &= LEAF_1_ECX);
    add(7, 0, SIGNIFICANT_INDEX, &|entry| {
        entry.eax = 0;
        entry.ebx &= LEAF_7_EBX;
        entry.ecx = 0;
        entry.edx &= LEAF_7_EDX;
    });
    // XCR0 = 7: x87, SSE and AVX state, 832 bytes in all.
    add(0xd, 0, SIGNIFICANT_INDEX, &|entry| (entry.eax, entry.ebx, entry.ecx, entry.edx) = (7, 832, 832, 0));
    add(0xd, 1, SIGNIFICANT_INDEX, &|entry| (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0));
    add(0xd, 2, SIGNIFICANT_INDEX, &|_| {});
    add(0x8000_0000, 0, 0, &|entry| entry.eax = 0x8000_0008);
    for function in [0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006, 0x8000_0008] {
        add(function, 0, 0, &|_| {});
    }
    CpuId::from_entries(&entries).expect("fewer entries than KVM takes")
}
