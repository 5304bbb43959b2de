//! Device rules as an eBPF program of type `CGROUP_DEVICE`, which is what v2 has instead of a devices controller.
//!
//! The kernel runs it at every `open` and `mknod` of a device and passes `struct bpf_cgroup_dev_ctx`: kind and wanted
//! rights in one word, major, minor. The program goes through the rules from the last to the first and strikes out what
//! each allows; it answers 1 as soon as no wanted right is left, and 0 at a rule that denies one of them, or at the end.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::devices::{Kind, Rule};
use super::{Error, Result};

/// `BPF_DEVCG_DEV_*` of `linux/bpf.h`.
const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;

/// Registers: the answer and, after the prologue, what the program compares.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Opcodes of `linux/bpf.h`; all arithmetic is on 32 bits.
mod opcode {
    pub const LOAD_WORD: u8 = 0x61;
    pub const MOVE: u8 = 0xB4;
    pub const MOVE_REGISTER: u8 = 0xBC;
    pub const AND: u8 = 0x54;
    pub const SHIFT_RIGHT: u8 = 0x74;
    pub const SKIP_IF_NOT_EQUAL: u8 = 0x56;
    pub const SKIP_IF_ANY_SET: u8 = 0x46;
    pub const SKIP: u8 = 0x05;
    pub const EXIT: u8 = 0x95;
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    opcode: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    /// Of a jump: how many instructions are skipped.
    offset: i16,
    value: i32,
}

const fn instruction(opcode: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { opcode, registers: to | from << 4, offset, value }
}

const EXIT: Instruction = instruction(opcode::EXIT, 0, 0, 0, 0);

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(opcode::MOVE, ANSWER, 0, 0, allow.into()), EXIT]
}

/// The program for `rules`.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(opcode::LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(opcode::MOVE_REGISTER, WANTED, KIND, 0, 0),
        instruction(opcode::AND, KIND, 0, 0, 0xFFFF),
        instruction(opcode::SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(opcode::LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(opcode::LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(check(rule));
    }
    program.extend(answer(false));
    program
}

/// What one rule does, if it is about the device at all.
fn check(rule: &Rule) -> Vec<Instruction> {
    let access = i32::from(rule.access);
    let mut code = Vec::with_capacity(7);
    let kind = if rule.kind == Kind::Block { DEV_BLOCK } else { DEV_CHAR };
    let devices =
        [(KIND, Some(kind)), (MAJOR, rule.major.map(u32::cast_signed)), (MINOR, rule.minor.map(u32::cast_signed))];
    for (register, value) in devices {
        code.extend(value.map(|value| instruction(opcode::SKIP_IF_NOT_EQUAL, register, 0, 0, value)));
    }
    let comparisons = code.len();
    if rule.allow {
        code.push(instruction(opcode::AND, WANTED, 0, 0, !access));
        code.push(instruction(opcode::SKIP_IF_NOT_EQUAL, WANTED, 0, 2, 0));
    } else {
        code.push(instruction(opcode::SKIP_IF_ANY_SET, WANTED, 0, 1, access));
        code.push(instruction(opcode::SKIP, 0, 0, 2, 0));
    }
    code.extend(answer(rule.allow));
    let end = code.len();
    for (position, comparison) in code[..comparisons].iter_mut().enumerate() {
        comparison.offset = (end - position - 1) as i16;
    }
    code
}

/// Attaches the program for `rules` to the group `dir`, in the place of any that is attached there.
pub(super) fn attach(dir: &Path, rules: &[Rule]) -> Result<()> {
    let failed = |action| move |source| Error::DeviceProgram { action, path: dir.to_owned(), source };
    let group = File::open(dir).map_err(|source| Error::Read { path: dir.to_owned(), source })?;
    let program = bpf::load(&program(rules)).map_err(failed("load"))?;
    let before = bpf::attached(&group).map_err(failed("list"))?;
    // All programs of a group must allow, so there is no moment at which more is allowed than before or after.
    bpf::attach(&group, &program).map_err(failed("attach"))?;
    before.iter().try_for_each(|id| bpf::detach(&group, *id)).map_err(failed("replace"))
}

/// The bpf(2) calls this needs.
mod bpf {
    use super::{AsRawFd, File, FromRawFd, Instruction, OwnedFd, c_int, io};

    const PROG_LOAD: c_int = 5;
    const PROG_ATTACH: c_int = 8;
    const PROG_DETACH: c_int = 9;
    const PROG_GET_FD_BY_ID: c_int = 13;
    const PROG_QUERY: c_int = 16;

    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
    /// Groups below may have programs of their own, all of which must allow.
    const ALLOW_MULTI: u32 = 2;
    /// `BPF_CGROUP_MAX_PROGS`: as many as the kernel attaches to one group.
    const MAX_PROGRAMS: usize = 64;

    /// The part of `union bpf_attr` for `BPF_PROG_LOAD`.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }

    /// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
    #[repr(C)]
    struct Attach {
        target: c_int,
        program: c_int,
        attach_type: u32,
        flags: u32,
    }

    /// For `BPF_PROG_QUERY`.
    #[repr(C)]
    struct Query {
        target: c_int,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }

    /// For `BPF_PROG_GET_FD_BY_ID`.
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
    }

    /// # Safety
    ///
    /// `attr` is the part of `union bpf_attr` that belongs to `command`, and its pointers are valid.
    unsafe fn bpf<T>(command: c_int, attr: &mut T) -> io::Result<c_int> {
        // SAFETY: `attr` is valid for its size; the rest is the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
    }

    pub fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
        let mut attr = Load {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            count: program.len() as u32,
            instructions: program.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
        };
        // SAFETY: both pointers are to memory that outlives the call; the result is a new descriptor.
        unsafe { bpf(PROG_LOAD, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
    }

    pub fn attach(group: &File, program: &OwnedFd) -> io::Result<()> {
        change(PROG_ATTACH, group, program, ALLOW_MULTI)
    }

    pub fn detach(group: &File, id: u32) -> io::Result<()> {
        let mut attr = ById { id, next: 0, flags: 0 };
        // SAFETY: the attribute has no pointers; the result is a new descriptor.
        let program = match unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) } {
            // Gone meanwhile, which is what was wanted.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            program => program?,
        };
        change(PROG_DETACH, group, &program, 0)
    }

    fn change(command: c_int, group: &File, program: &OwnedFd, flags: u32) -> io::Result<()> {
        let mut attr = Attach {
            target: group.as_raw_fd(),
            program: program.as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            flags,
        };
        // SAFETY: the attribute has no pointers.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// The ids of the programs attached to the group itself.
    pub fn attached(group: &File) -> io::Result<Vec<u32>> {
        let mut ids = vec![0_u32; MAX_PROGRAMS];
        let mut attr = Query {
            target: group.as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            query_flags: 0,
            attach_flags: 0,
            ids: ids.as_mut_ptr() as u64,
            count: ids.len() as u32,
            padding: 0,
        };
        // SAFETY: `ids` has room for `count` numbers.
        unsafe { bpf(PROG_QUERY, &mut attr) }?;
        ids.truncate(attr.count as usize);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{MKNOD, READ, WRITE};

    /// Runs the program as the kernel would.
    fn allows(program: &[Instruction], kind: i32, wanted: u8, major: u32, minor: u32) -> bool {
        let context = [kind as u32 | u32::from(wanted) << 16, major, minor];
        let mut registers = [0_u32; 6];
        let mut pc = 0_usize;
        loop {
            let Instruction { opcode, registers: operands, offset, value } = program[pc];
            let (to, from) = (usize::from(operands & 15), usize::from(operands >> 4));
            let value = value as u32;
            pc += 1;
            let jump = match opcode {
                opcode::EXIT => return registers[0] == 1,
                opcode::SKIP => true,
                opcode::SKIP_IF_NOT_EQUAL => registers[to] != value,
                opcode::SKIP_IF_ANY_SET => registers[to] & value != 0,
                _ => {
                    registers[to] = match opcode {
                        opcode::LOAD_WORD => context[offset as usize / 4],
                        opcode::MOVE => value,
                        opcode::MOVE_REGISTER => registers[from],
                        opcode::AND => registers[to] & value,
                        opcode::SHIFT_RIGHT => registers[to] >> value,
                        _ => panic!("unknown opcode {opcode:#x}"),
                    };
                    false
                }
            };
            if jump {
                pc += offset as usize;
            }
        }
    }

    fn rule(allow: bool, kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule { allow, kind, major, minor, access }
    }

    #[test]
    fn the_program_follows_the_rules_from_last_to_first() {
        let program = program(&[
            rule(true, Kind::Char, Some(1), None, READ),
            rule(true, Kind::Char, Some(1), Some(3), WRITE),
            rule(false, Kind::Char, Some(1), Some(8), READ),
            rule(true, Kind::Block, None, None, MKNOD),
            rule(true, Kind::Char, Some(u32::MAX), Some(7), READ),
        ]);
        let char = |wanted, major, minor| allows(&program, DEV_CHAR, wanted, major, minor);
        assert!(char(READ, 1, 5));
        assert!(!char(WRITE, 1, 5));
        assert!(char(READ | WRITE, 1, 3), "two rules together");
        assert!(!char(READ | WRITE | MKNOD, 1, 3));
        assert!(!char(READ, 1, 8), "a later rule denies");
        assert!(!char(READ, 2, 5), "denied by default");
        assert!(char(READ, u32::MAX, 7));
        assert!(allows(&program, DEV_BLOCK, MKNOD, 8, 0));
        assert!(!allows(&program, DEV_BLOCK, READ, 1, 5), "of another kind");
    }

    #[test]
    fn a_denied_right_counts_even_among_others() {
        let program = program(&[
            rule(true, Kind::Char, None, None, READ | WRITE | MKNOD),
            rule(false, Kind::Char, Some(10), None, WRITE),
        ]);
        assert!(allows(&program, DEV_CHAR, READ, 10, 200));
        assert!(!allows(&program, DEV_CHAR, READ | WRITE, 10, 200));
        assert!(allows(&program, DEV_CHAR, READ | WRITE, 11, 200));
    }

    #[test]
    fn the_kernel_takes_the_longest_program() {
        let rules = vec![rule(false, Kind::Block, Some(8), Some(1), READ); super::super::devices::MAX_RULES];
        bpf::load(&program(&rules)).unwrap();
    }
}
