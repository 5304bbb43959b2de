//! Processes: making and ending them, waiting, groups and sessions.

use std::os::fd::AsFd as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Arguments, names, signals};
use crate::process::Result;
use crate::process::files::join;
use crate::process::loader::{self, Program};
use crate::process::plain::word;
use crate::process::task::{Answer, CloneRequest, Task};
use crate::process::vm::lock;

/// The longest single one, as on Linux.
const LONGEST_STRING: usize = 128 << 10;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_fork => task.clone_task(&CloneRequest { exit_signal: libc::SIGCHLD as u8, ..Default::default() }),
        libc::SYS_vfork => task.clone_task(&CloneRequest {
            flags: (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
            exit_signal: libc::SIGCHLD as u8,
            ..Default::default()
        }),
        libc::SYS_clone => exit_signal(a[0] & 0xff).and_then(|exit_signal| {
            task.clone_task(&CloneRequest {
                flags: a[0] & !0xff,
                exit_signal,
                stack: a[1],
                parent_tid: a[2],
                child_tid: a[3],
                tls: a[4],
            })
        }),
        libc::SYS_clone3 => clone3(task, a[0], a[1]),
        libc::SYS_wait4 => wait4(task, a),
        libc::SYS_waitid => waitid(task, a),
        libc::SYS_getpid => Ok(task.pid as u64),
        libc::SYS_gettid => Ok(task.tid as u64),
        libc::SYS_set_tid_address => {
            task.clear_child_tid = a[0];
            Ok(task.tid as u64)
        }
        libc::SYS_getppid => lock(&task.kernel.table).process(task.pid).map(|process| process.parent as u64),
        libc::SYS_getpgrp => lock(&task.kernel.table).process(task.pid).map(|process| process.group as u64),
        libc::SYS_getpgid | libc::SYS_getsid => {
            let pid = if a[0] == 0 { task.pid } else { a[0] as i32 };
            lock(&task.kernel.table).process(pid).map(|process| {
                let id = if number == libc::SYS_getpgid { process.group } else { process.session };
                id as u64
            })
        }
        libc::SYS_setpgid => set_group(task, a[0] as i32, a[1] as i32),
        libc::SYS_setsid => {
            let mut table = lock(&task.kernel.table);
            let pid = task.pid;
            if !table.group(pid).is_empty() {
                return Some(Err(Errno::EPERM));
            }
            table.process(pid).map(|process| {
                (process.group, process.session) = (pid, pid);
                pid as u64
            })
        }
        libc::SYS_arch_prctl => match a[0] {
            0x1001 => {
                task.vcpu.set_gs_base(a[1]);
                Ok(0)
            }
            0x1002 => {
                task.vcpu.set_fs_base(a[1]);
                Ok(0)
            }
            0x1003 => lock(&task.memory).write(a[1], &task.vcpu.fs_base().to_le_bytes()).map(|()| 0),
            0x1004 => lock(&task.memory).write(a[1], &task.vcpu.gs_base().to_le_bytes()).map(|()| 0),
            _ => Err(Errno::EINVAL),
        },
        libc::SYS_prctl => match a[0] as i32 {
            libc::PR_SET_NAME
            | libc::PR_SET_DUMPABLE
            | libc::PR_SET_NO_NEW_PRIVS
            | libc::PR_SET_VMA
            | libc::PR_SET_PDEATHSIG
            | libc::PR_CAPBSET_READ => Ok(0),
            libc::PR_GET_DUMPABLE | libc::PR_GET_NO_NEW_PRIVS => Ok(1),
            libc::PR_GET_NAME => {
                let name = lock(&task.kernel.table).process(task.pid).map(|process| process.executable.clone());
                name.and_then(|name| {
                    let base = name.rsplit(|&byte| byte == b'/').next().unwrap_or(b"");
                    let mut bytes = [0; 16];
                    let length = base.len().min(15);
                    bytes[..length].copy_from_slice(&base[..length]);
                    lock(&task.memory).write(a[1], &bytes).map(|()| 0)
                })
            }
            _ => Err(Errno::EINVAL),
        },
        _ => return None,
    })
}

/// What a child's parent is sent at its end: a signal, or 0 for none.
fn exit_signal(word: u64) -> Result<u8> {
    if word == 0 { Ok(0) } else { signals::number(word) }
}

fn clone3(task: &mut Task, address: u64, size: u64) -> Result {
    const SIZE: u64 = 64;
    if size < SIZE {
        return Err(Errno::EINVAL);
    }
    let bytes: [u8; SIZE as usize] = lock(&task.memory).array(address)?;
    let word = |at: usize| word(&bytes, at * 8);
    let stack = if word(5) == 0 { 0 } else { word(5).wrapping_add(word(6)) };
    task.clone_task(&CloneRequest {
        flags: word(0),
        child_tid: word(2),
        parent_tid: word(3),
        exit_signal: exit_signal(word(4))?,
        stack,
        tls: word(7),
    })
}

/// Serves execve and execveat: on success the registers are the new program's.
pub fn execute(task: &mut Task, number: i64, a: Arguments) -> Result<Answer> {
    let here = i64::from(libc::AT_FDCWD).cast_unsigned();
    let (directory, path, arguments, environment, flags) = match number {
        libc::SYS_execve => (here, a[0], a[1], a[2], 0),
        _ => (a[0], a[1], a[2], a[3], a[4]),
    };
    let mut memory = lock(&task.memory);
    let name = memory.path(path)?;
    // The loader would refuse more, but only when all of it has been read.
    let mut room = loader::MOST_BYTES;
    let mut strings = |address: u64| -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        if address == 0 {
            return Ok(found);
        }
        loop {
            let pointer = memory.word(address.wrapping_add(found.len() as u64 * 8))?;
            if pointer == 0 {
                return Ok(found);
            }
            let text = memory.string(pointer, LONGEST_STRING).map_err(|error| match error {
                Errno::ENAMETOOLONG => Errno::E2BIG,
                other => other,
            })?;
            room = room.checked_sub(loader::bytes_of(&text)).ok_or(Errno::E2BIG)?;
            found.push(text);
        }
    };
    let (arguments, environment) = (strings(arguments)?, strings(environment)?);
    drop(memory);
    let who = task.credentials()?;
    let (fd, path) = if name.is_empty() && flags & libc::AT_EMPTY_PATH as u64 != 0 {
        let file = task.file(directory)?;
        (file.fd.try_clone().map_err(|_| Errno::ENFILE)?, file.path.clone())
    } else if name == b"/proc/self/exe" {
        let path = lock(&task.kernel.table).process(task.pid)?.executable.clone();
        (task.kernel.root.open_program(&who, &path)?, path)
    } else {
        let file = names::open_file(task, directory, path, OFlag::O_RDONLY, 0)?;
        task.kernel.root.check_program(&who, file.as_fd())?;
        let base = if name.starts_with(b"/") { Vec::new() } else { names::base(task, directory)?.path.clone() };
        (file.fd.try_clone().map_err(|_| Errno::ENFILE)?, join(&base, &name))
    };
    let arguments = if arguments.is_empty() { vec![Vec::new()] } else { arguments };
    task.execute(Program { file: fd, path, arguments, environment })?;
    Ok(Answer::Registers)
}

fn wait4(task: &mut Task, [wanted, status, options, usage, ..]: Arguments) -> Result {
    let options = options as i32 | libc::WEXITED;
    let Some(found) = task.wait(wanted as i32, options, false)? else { return Ok(0) };
    let mut memory = lock(&task.memory);
    if status != 0 {
        memory.write(status, &found.status.to_le_bytes())?;
    }
    if usage != 0 {
        memory.write(usage, &super::limits::usage(found.spent))?;
    }
    Ok(found.pid as u64)
}

fn waitid(task: &mut Task, [kind, id, info, options, ..]: Arguments) -> Result {
    let wanted = match kind as u32 {
        libc::P_ALL => -1,
        libc::P_PID => id as i32,
        libc::P_PGID => (id as i32).wrapping_neg(),
        _ => return Err(Errno::EINVAL),
    };
    let options = options as i32;
    let keep = options & libc::WNOWAIT != 0;
    let found = task.wait(wanted, options, keep)?;
    if info != 0 {
        let mut bytes = [0; 128];
        if let Some(found) = found {
            let (code, value) = match found.status {
                0xffff => (libc::CLD_CONTINUED, libc::SIGCONT as u32),
                status if status & 0xff == 0x7f => (libc::CLD_STOPPED, status >> 8),
                status if libc::WIFEXITED(status.cast_signed()) => (libc::CLD_EXITED, status >> 8),
                status => (libc::CLD_KILLED, status & 0x7f),
            };
            bytes[..4].copy_from_slice(&libc::SIGCHLD.to_le_bytes());
            bytes[8..12].copy_from_slice(&code.to_le_bytes());
            bytes[16..20].copy_from_slice(&found.pid.to_le_bytes());
            bytes[24..28].copy_from_slice(&value.to_le_bytes());
        }
        lock(&task.memory).write(info, &bytes)?;
    }
    Ok(0)
}

fn set_group(task: &Task, pid: i32, group: i32) -> Result {
    let pid = if pid == 0 { task.pid } else { pid };
    let group = if group == 0 { pid } else { group };
    let mut table = lock(&task.kernel.table);
    let session = table.process(task.pid)?.session;
    if group < 0 {
        return Err(Errno::EINVAL);
    }
    if group != pid && !table.processes.values().any(|other| other.group == group && other.session == session) {
        return Err(Errno::EPERM);
    }
    let process = table.process(pid)?;
    if pid != task.pid && process.parent != task.pid {
        return Err(Errno::ESRCH);
    }
    if process.session == pid || process.session != session {
        return Err(Errno::EPERM);
    }
    process.group = group;
    Ok(0)
}
