//! Ring 0 of a guest, where hardware virtualization has one: `syscall` and every exception enter it there.
//!
//! It holds nothing that thinks. Each entry is one `out` that leaves the VM: a system call's by [`layout::PORT`], that of
//! exception *n* by [`layout::FAULTS`] + *n*. The VMM goes back to ring 3 by the one `iretq` there is, with a frame it has
//! written itself. (An empty interrupt table, as on PVM, would not do: after a triple fault `kvm_amd` resets the vCPU.)
//!
//! Every vCPU has a block of its own, hidden from ring 3: a task segment, whose one use is to name the stack, and the stack,
//! which holds the frame of one exception and nothing ever below it: no exception comes while in ring 0.

use core::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::layout;
use super::vcpu::{USER_CS, USER_SS};

/// Selectors in ring 0.
pub const KERNEL_CS: u16 = 0x10;
const KERNEL_SS: u16 = 0x18;

/// The flags that `syscall` clears: what ring 3 has set of them would trap in ring 0 (TF), or is not its own business (NT,
/// DF, AC).
pub const MASKED_FLAGS: u64 = 0x4_4500;

/// The flags that are a program's: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC, ID.
const PROGRAM_FLAGS: u64 = 0x25_0dd5;
/// Those it always sees set: interrupts are enabled, and bit 1.
const SET_FLAGS: u64 = 0x202;

/// Bytes of a vCPU's block, the stack at its end.
const BLOCK: u64 = 256;
/// Bytes of a task segment (Intel SDM volume 3, 8.7).
const TASK_SEGMENT: u16 = 104;
/// Where in it the stack of ring 0 stands, and where its I/O permission bitmap would begin: behind its end, so there is none,
/// and no port is ring 3's.
const STACK_POINTER: usize = 4;
const BITMAP: usize = 102;
/// What an exception pushes and `iretq` takes: RIP, CS, RFLAGS, RSP, SS.
const FRAME: u64 = 5 * 8;

/// Exceptions have the numbers below.
pub const EXCEPTIONS: u16 = 32;
/// A general-protection exception.
pub const GENERAL_PROTECTION: u8 = 13;
/// A page fault.
pub const PAGE_FAULT: u8 = 14;
/// Those a program may raise by an instruction for it: `int3` and `into`.
const PROGRAMS_OWN: [u16; 2] = [3, 4];

/// Where the descriptors stand in the page of tables; the gates are before them.
const DESCRIPTORS: usize = 0x800;
/// By selector: nothing, nothing, code and data of ring 0, nothing, data and code of ring 3, all flat and marked as accessed.
const SEGMENTS: [u64; 7] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];

/// The page of tables: where exceptions lead, and what the selectors mean.
pub fn tables() -> Vec<u8> {
    let mut page = Vec::with_capacity(DESCRIPTORS + size_of_val(&SEGMENTS));
    for number in 0..EXCEPTIONS {
        let target = layout::fault_code(number);
        // A present 64-bit interrupt gate; its privilege is that of who may call it.
        let kind: u64 = if PROGRAMS_OWN.contains(&number) { 0xee } else { 0x8e };
        let low = target & 0xffff | u64::from(KERNEL_CS) << 16 | kind << 40 | (target >> 16 & 0xffff) << 48;
        page.extend([low, target >> 32].iter().flat_map(|word| word.to_le_bytes()));
    }
    page.resize(DESCRIPTORS, 0);
    page.extend(SEGMENTS.iter().flat_map(|segment| segment.to_le_bytes()));
    page
}

/// The memory for all blocks, where the host has it.
#[derive(Debug)]
pub struct Blocks(*mut u8);

// SAFETY: the memory is the arena's, and each vCPU uses its own part of it.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Sync for Blocks {}

impl Blocks {
    /// Over memory of zeroes.
    ///
    /// # Safety
    /// There are [`layout::BLOCKS_LENGTH`] bytes of it, which nobody else uses, for longer than there are vCPUs; they begin at a
    /// page.
    pub unsafe fn new(start: *mut u8) -> Self {
        Self(start)
    }
}

/// One vCPU's ring 0.
#[derive(Debug)]
pub struct Supervisor {
    /// The frame as the guest and as the VMM see it.
    frame: (u64, *mut [AtomicU64; 5]),
    /// Whether the vCPU is in ring 0.
    inside: bool,
}

// SAFETY: the pointer is into the arena, which outlives its vCPUs; the frame is only accessed atomically.
unsafe impl Send for Supervisor {}

impl Supervisor {
    /// That of the vCPU with this number, and in `special` the registers of one in ring 3 that enters it. `None` where there is no
    /// room for so many.
    pub fn new(index: u64, blocks: &Blocks, special: &mut kvm_sregs) -> Option<Self> {
        if index >= layout::BLOCKS_LENGTH / BLOCK {
            return None;
        }
        let base = layout::BLOCKS + index * BLOCK;
        let stack = base + BLOCK;
        let segment = kvm_segment { base, limit: u32::from(TASK_SEGMENT - 1), ..special.tr };
        special.tr = kvm_segment { selector: 0x40, type_: 11, present: 1, s: 0, ..segment };
        special.idt = kvm_dtable { base: layout::TABLES, limit: EXCEPTIONS * 16 - 1, ..Default::default() };
        let limit = size_of_val(&SEGMENTS) as u16 - 1;
        special.gdt = kvm_dtable { base: layout::TABLES + DESCRIPTORS as u64, limit, ..Default::default() };
        // SAFETY: the block lies within the memory for all blocks, and no other vCPU has this number.
        let frame = unsafe {
            let block = blocks.0.add((index * BLOCK) as usize);
            block.add(STACK_POINTER).cast::<u64>().write_unaligned(stack);
            block.add(BITMAP).cast::<u16>().write_unaligned(TASK_SEGMENT);
            block.add((BLOCK - FRAME) as usize)
        };
        Some(Self { frame: (stack - FRAME, frame.cast()), inside: false })
    }

    fn words(&self) -> &[AtomicU64; 5] {
        // SAFETY: see the type's claim to be `Send`; the frame is aligned, as the block and its own offset are.
        unsafe { &*self.frame.1 }
    }

    /// Before a run: whether the registers, which are a program's, had to be changed into those that lead to it.
    pub fn enter(&self, registers: &mut kvm_regs) -> bool {
        if self.inside {
            let flags = registers.rflags & PROGRAM_FLAGS | SET_FLAGS;
            let frame = [registers.rip, USER_CS.into(), flags, registers.rsp, USER_SS.into()];
            for (to, word) in self.words().iter().zip(frame) {
                to.store(word, Ordering::Relaxed);
            }
            (registers.rip, registers.rsp, registers.rflags) = (layout::RETURN, self.frame.0, 2);
        }
        self.inside
    }

    /// The segments the vCPU has where it is.
    pub fn segments(&self, special: &mut kvm_sregs) {
        if self.inside {
            special.cs = kvm_segment { selector: KERNEL_CS, dpl: 0, ..special.cs };
            special.ss = kvm_segment { selector: KERNEL_SS, dpl: 0, ..special.ss };
        }
    }

    /// The vCPU has left by a system call's port.
    pub fn called(&mut self) {
        self.inside = true;
    }

    /// The vCPU has left by an exception's port: makes the registers those the program had.
    pub fn faulted(&mut self, registers: &mut kvm_regs) {
        self.inside = true;
        self.take(registers);
    }

    fn take(&self, registers: &mut kvm_regs) {
        let [rip, _, flags, rsp, _] = self.words().each_ref().map(|word| word.load(Ordering::Relaxed));
        (registers.rip, registers.rflags, registers.rsp) = (rip, flags, rsp);
    }

    /// The vCPU was stopped wherever it was. Where that is in ring 0, says what was about to happen.
    pub fn stopped(&mut self, special: &kvm_sregs, registers: &mut kvm_regs) -> Option<About> {
        self.inside = special.cs.dpl == 0;
        if !self.inside {
            return None;
        }
        match registers.rip {
            layout::STUB => Some(About::Call),
            layout::RETURN => {
                self.take(registers);
                None
            }
            at => {
                self.take(registers);
                layout::fault_at(at).map(About::Fault)
            }
        }
    }
}

/// What a vCPU in ring 0 was about to leave for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A system call.
    Call,
    /// This exception.
    Fault(u8),
}
