//! The registers a vCPU starts with.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::boot::layout::{GDT, PAGE_TABLES, START_INFO, ZERO_PAGE};
use crate::boot::{Entry, GDT_CODE_64, GDT_DATA, Protocol};
use crate::paging::mode::{CR0_PG, CR4_PAE, EFER_LMA};

/// Those that only matter for getting there; the rest are where translations are followed.
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const EFER_LME: u64 = 1 << 8;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS: u64 = 1 << 1;
/// Segment types: code, readable, accessed; data, writable, accessed.
const CODE: u8 = 11;
const DATA: u8 = 3;
/// A task register must hold a busy TSS to be valid.
const BUSY_TSS: u8 = 11;

/// Puts the first vCPU at `entry` as the protocol wants it. The others wait to be started by the guest.
pub fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), errno::Error> {
    let mut system = vcpu.get_sregs()?;
    let mut general = kvm_regs { rip: entry.address, rflags: RFLAGS, ..Default::default() };
    match entry.protocol {
        Protocol::Linux64 => {
            long_mode(&mut system);
            general.rsi = ZERO_PAGE;
        }
        Protocol::Pvh => {
            protected_mode(&mut system);
            general.rbx = START_INFO;
        }
    }
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&general)
}

/// Long mode with flat segments and the boot page tables.
pub fn long_mode(system: &mut kvm_sregs) {
    segments(system, kvm_segment { l: 1, ..segment(GDT_CODE_64, CODE) });
    system.cr0 = CR0_PE | CR0_ET | CR0_PG;
    system.cr3 = PAGE_TABLES;
    system.cr4 = CR4_PAE;
    system.efer = EFER_LME | EFER_LMA;
}

/// 32-bit protected mode with flat segments and no paging.
fn protected_mode(system: &mut kvm_sregs) {
    segments(system, kvm_segment { db: 1, ..segment(GDT_CODE_64, CODE) });
    system.cr0 = CR0_PE | CR0_ET;
    system.cr4 = 0;
    system.efer = 0;
}

fn segments(system: &mut kvm_sregs, code: kvm_segment) {
    let data = kvm_segment { db: 1, ..segment(GDT_DATA, DATA) };
    system.cs = code;
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = kvm_segment { limit: 0x67, g: 0, s: 0, ..segment(0, BUSY_TSS) };
    system.gdt.base = GDT;
    system.gdt.limit = crate::boot::GDT_LIMIT;
    system.idt.base = 0;
    system.idt.limit = 0;
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { base: 0, limit: u32::MAX, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}
