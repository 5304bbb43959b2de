//! Where a program is: names, random bytes, scheduling.

use nix::errno::Errno;
use rustix::thread::CapabilitySet;

use super::Arguments;
use super::host::{self, Arg};
use crate::process::Result;
use crate::process::files::Credentials;
use crate::process::task::Task;
use crate::process::task::table::Process;
use crate::process::vm::lock;

/// Most random bytes of one call.
const MOST_RANDOM: u64 = 1 << 20;
const UTSNAME_FIELD: usize = 65;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    let write = |address: u64, bytes: &[u8]| lock(&task.memory).write(address, bytes).map(|()| 0);
    Some(match number {
        libc::SYS_uname => write(a[0], &uname(&lock(&task.kernel.host_name))),
        // Asked for, or set to what it is: Linux on this processor.
        libc::SYS_personality if matches!(a[0] as u32, 0 | u32::MAX) => Ok(0),
        libc::SYS_personality => Err(Errno::EINVAL),
        libc::SYS_sethostname => Err(Errno::EPERM),
        libc::SYS_getrandom => {
            let mut bytes = vec![0; a[1].min(MOST_RANDOM) as usize];
            let length = bytes.len() as u64;
            host::call(number, [Arg::Out(&mut bytes), length.into(), a[2].into()])
                .and_then(|read| write(a[0], &bytes[..read as usize]).map(|_| read))
        }
        libc::SYS_sysinfo => {
            let mut bytes = [0; 112];
            host::call(number, [Arg::from(&mut bytes)]).and_then(|_| write(a[0], &bytes))
        }
        libc::SYS_sched_yield => host::call(number, []),
        libc::SYS_sched_getaffinity => {
            let mut set = vec![0; a[1].min(128) as usize];
            let length = set.len() as u64;
            host::call(number, [0.into(), length.into(), Arg::Out(&mut set)])
                .and_then(|read| write(a[2], &set[..read as usize]).map(|_| read))
        }
        libc::SYS_sched_setaffinity
        | libc::SYS_sched_setscheduler
        | libc::SYS_sched_setparam
        | libc::SYS_membarrier
        | libc::SYS_sched_getscheduler => Ok(0),
        // Every program is scheduled the ordinary way.
        libc::SYS_sched_get_priority_max | libc::SYS_sched_get_priority_min => match a[0] as i32 {
            libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(0),
            libc::SCHED_FIFO | libc::SCHED_RR => Ok(if number == libc::SYS_sched_get_priority_max { 99 } else { 1 }),
            _ => Err(Errno::EINVAL),
        },
        libc::SYS_sched_getparam => write(a[1], &[0; 4]),
        // Groups and users have one niceness as well: that of the process that asks.
        libc::SYS_getpriority => with_target(task, a, |process, _| Ok((20 - i64::from(process.nice)).cast_unsigned())),
        libc::SYS_setpriority => with_target(task, a, |process, who| set_nice(process, who, a[2] as i32)),
        libc::SYS_getcpu => {
            let mut numbers = [0; 8];
            let (cpu, node) = numbers.split_at_mut(4);
            host::call(number, [Arg::Out(cpu), Arg::Out(node)]).and_then(|_| {
                let cpu = if a[0] == 0 { Ok(0) } else { write(a[0], &numbers[..4]) };
                let node = if a[1] == 0 { Ok(0) } else { write(a[1], &numbers[4..]) };
                cpu.and(node)
            })
        }
        _ => return None,
    })
}

/// The process that getpriority and setpriority mean, and who asks.
fn with_target(task: &Task, a: Arguments, act: impl FnOnce(&mut Process, &Credentials) -> Result) -> Result {
    if a[0] > u64::from(libc::PRIO_USER) {
        return Err(Errno::EINVAL);
    }
    let pid = if a[0] != u64::from(libc::PRIO_PROCESS) || a[1] == 0 { task.pid } else { a[1] as i32 };
    let who = task.credentials()?;
    act(lock(&task.kernel.table).process(pid)?, &who)
}

/// Makes a process nicer, its threads on the host too. Those cannot be made less nice again: the VMM has no right to.
fn set_nice(process: &mut Process, who: &Credentials, nice: i32) -> Result {
    let nice = nice.clamp(-20, 19);
    let [own, reached] = [who, &process.credentials].map(|who| [who.user.real, who.user.effective]);
    if !who.has(CapabilitySet::SYS_NICE) {
        if !own.contains(&reached[1]) {
            return Err(Errno::EPERM);
        }
        if nice < process.nice {
            return Err(Errno::EACCES);
        }
    }
    process.nice = nice;
    for handle in process.threads.values().filter_map(|thread| thread.handle.as_ref()) {
        let _ = host::call(
            libc::SYS_setpriority,
            [u64::from(libc::PRIO_PROCESS).into(), handle.host_thread.into(), nice.into()],
        );
    }
    Ok(0)
}

/// `struct utsname`.
fn uname(host_name: &[u8]) -> Vec<u8> {
    let fields: [&[u8]; 6] = [b"Linux", host_name, b"6.1.0", b"#1 SMP berth", b"x86_64", b"(none)"];
    let mut bytes = vec![0; fields.len() * UTSNAME_FIELD];
    for (to, from) in bytes.chunks_exact_mut(UTSNAME_FIELD).zip(fields) {
        let length = from.len().min(UTSNAME_FIELD - 1);
        to[..length].copy_from_slice(&from[..length]);
    }
    bytes
}
