//! What stands where in every address space, and the stub.

/// The end of what a process may map, as on Linux.
pub const USER_END: u64 = 0x7fff_f000_0000;

/// The page `LSTAR` points to.
pub const STUB: u64 = 0x7fff_ff00_0000;

/// The task segment, for the supervisor only: its I/O bitmap lets ring 3 leave by `out`.
pub const TASK: u64 = 0x7fff_ff00_1000;

/// The page the time is read from.
pub const CLOCK: u64 = 0x7fff_ff00_2000;

/// The shared object that reads it.
pub const VDSO: u64 = 0x7fff_ff00_3000;

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

/// What follows happens in ring 3, since not every KVM tells the upper halves of vector registers (`KVM_GET_XSAVE`).
/// Saves all extended state that is enabled at R8, then goes to a signal handler at R10 with R9 as its third argument.
pub const SAVE: u64 = STUB + 0x10;

/// Takes that state back from R8 and leaves by [`RESTORED`].
pub const RESTORE: u64 = STUB + 0x30;

/// The page at [`STUB`].
pub const STUB_CODE: &[(u64, &[u8])] = &[
    // With VT-x in ring 0, on PVM in ring 3: `out %al,$PORT`. The VMM resumes elsewhere.
    (STUB, &[0xe6, PORT as u8]),
    // or eax, -1; or edx, -1; xsave64 [r8]; mov rdx, r9; xor eax, eax; jmp r10
    (
        SAVE,
        &[0x83, 0xc8, 0xff, 0x83, 0xca, 0xff, 0x49, 0x0f, 0xae, 0x20, 0x4c, 0x89, 0xca, 0x31, 0xc0, 0x41, 0xff, 0xe2],
    ),
    // or eax, -1; or edx, -1; xrstor64 [r8]; out %al, $RESTORED
    (RESTORE, &[0x83, 0xc8, 0xff, 0x83, 0xca, 0xff, 0x49, 0x0f, 0xae, 0x28, 0xe6, RESTORED as u8]),
];
