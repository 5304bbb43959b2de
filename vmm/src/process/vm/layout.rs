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

/// `out %al,$PORT`: with VT-x in ring 0, on PVM in ring 3. The VMM resumes elsewhere.
pub const STUB_CODE: &[u8] = &[0xe6, PORT as u8];
