//! What stands where in every address space, and the stub.

use super::supervisor::EXCEPTIONS;
use crate::paging::entry::PAGE_SIZE;

/// The end of what a process may map, as on Linux.
pub const USER_END: u64 = 0x7fff_f000_0000;

/// The page `LSTAR` points to.
pub const STUB: u64 = 0x7fff_ff00_0000;

/// The task segment where ring 3 is never left, for the supervisor only: its I/O bitmap lets ring 3 leave by `out`.
pub const TASK: u64 = 0x7fff_ff00_1000;

/// The page the time is read from.
pub const CLOCK: u64 = 0x7fff_ff00_2000;

/// The shared object that reads it.
pub const VDSO: u64 = 0x7fff_ff00_3000;

/// Tables of ring 0, for the supervisor only, where there is a ring 0: see [`super::supervisor`].
pub const TABLES: u64 = 0x7fff_ff00_4000;

/// What each vCPU has of its own for ring 0, for the supervisor only, and how many bytes that is for all.
pub const BLOCKS: u64 = 0x7fff_ff10_0000;
/// All of it is within the reach of one page table, as what is above.
pub const BLOCKS_LENGTH: u64 = 0x10_0000;

/// The highest address of the first stack.
pub const STACK_END: u64 = 0x7fff_e000_0000;

/// Where mappings without a wished address are placed, downwards.
pub const MMAP_END: u64 = 0x7fff_8000_0000;

/// Where programs that may stand anywhere are loaded.
pub const PROGRAM: u64 = 0x5555_5555_0000;

/// The port a system call leaves by.
pub const PORT: u16 = 0x10;

/// The port that says that the vector registers are what they were before a signal handler.
pub const RESTORED: u16 = 0x11;

/// The first of the ports that exceptions leave by, where there is a ring 0.
pub const FAULTS: u16 = 0x20;

/// What follows happens in ring 3, since not every KVM tells the upper halves of vector registers (`KVM_GET_XSAVE`).
/// Saves all extended state that is enabled at R8, then goes to a signal handler at R10 with R9 as its third argument.
pub const SAVE: u64 = STUB + 0x10;

/// Takes that state back from R8 and leaves by [`RESTORED`].
pub const RESTORE: u64 = STUB + 0x30;

/// The instruction that leaves: where ring 3 may use no port it raises an exception, which says the same.
pub const RESTORE_END: u64 = RESTORE + 10;

/// Goes from ring 0 to ring 3.
pub const RETURN: u64 = STUB + 0x50;

/// Where the first exception enters ring 0; the others follow.
const FAULT_CODE: u64 = STUB + 0x100;

/// Where an exception enters ring 0.
pub const fn fault_code(number: u16) -> u64 {
    FAULT_CODE + number as u64 * 2
}

/// The exception that enters ring 0 here.
pub fn fault_at(address: u64) -> Option<u8> {
    let number = address.checked_sub(FAULT_CODE)? / 2;
    u8::try_from(number).ok().filter(|&number| u16::from(number) < EXCEPTIONS)
}

/// The page at [`STUB`]. What enters ring 0 there leaves it at once.
pub fn stub() -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut put = |at: u64, code: &[u8]| page[(at - STUB) as usize..][..code.len()].copy_from_slice(code);
    for &(at, code) in STUB_CODE {
        put(at, code);
    }
    for number in 0..EXCEPTIONS {
        put(fault_code(number), &[OUT, (FAULTS + number) as u8]);
    }
    page
}

/// `out %al, $n`; the number follows.
const OUT: u8 = 0xe6;

const STUB_CODE: &[(u64, &[u8])] = &[
    // With VT-x in ring 0, on PVM in ring 3: `out %al,$PORT`. The VMM resumes elsewhere.
    (STUB, &[OUT, PORT as u8]),
    // or eax, -1; or edx, -1; xsave64 [r8]; mov rdx, r9; xor eax, eax; jmp r10
    (
        SAVE,
        &[0x83, 0xc8, 0xff, 0x83, 0xca, 0xff, 0x49, 0x0f, 0xae, 0x20, 0x4c, 0x89, 0xca, 0x31, 0xc0, 0x41, 0xff, 0xe2],
    ),
    // or eax, -1; or edx, -1; xrstor64 [r8]; out %al, $RESTORED
    (RESTORE, &[0x83, 0xc8, 0xff, 0x83, 0xca, 0xff, 0x49, 0x0f, 0xae, 0x28, OUT, RESTORED as u8]),
    // iretq
    (RETURN, &[0x48, 0xcf]),
];
