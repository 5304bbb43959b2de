//! Limits and use of resources.

use std::time::Duration;

use nix::errno::Errno;
use rustix::thread::CapabilitySet;

use super::Arguments;
use crate::process::Result;
use crate::process::plain::{word, words};
use crate::process::task::Task;
use crate::process::vm::lock;

/// How many resources have limits.
const RESOURCES: usize = 16;
/// Ticks of times(2) in a second, as `AT_CLKTCK` says.
const TICKS: u128 = 100;

/// Soft and hard limit of each resource, by its `RLIMIT_` number. Those of descriptors and of signals that wait are kept; the
/// sandbox's control group limits memory and threads whatever stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits([(u64, u64); RESOURCES]);

impl Limits {
    /// Those of this very process.
    pub fn own() -> Self {
        Self(std::array::from_fn(|resource| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the structure is filled by the call.
            unsafe { libc::getrlimit(resource as u32, &raw mut limit) };
            (limit.rlim_cur, limit.rlim_max)
        }))
    }

    /// How many signals may wait for a process.
    pub fn pending(&self) -> u64 {
        self.0[libc::RLIMIT_SIGPENDING as usize].0
    }

    /// How many descriptors a process may have.
    pub fn descriptors(&self) -> u64 {
        self.0[libc::RLIMIT_NOFILE as usize].0
    }
}

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    Some(match number {
        libc::SYS_getrlimit => limit(task, [0, a[0], 0, a[1], 0, 0]),
        libc::SYS_setrlimit => limit(task, [0, a[0], a[1], 0, 0, 0]),
        libc::SYS_prlimit64 => limit(task, a),
        libc::SYS_getrusage => {
            used(task, a[0] as i32).and_then(|used| lock(&task.memory).write(a[1], &usage(used)).map(|()| 0))
        }
        libc::SYS_times => {
            let ticks = |time: Duration| (time.as_millis() * TICKS / 1000) as u64;
            let now = ticks(task.kernel.started.elapsed());
            if a[0] == 0 {
                return Some(Ok(now));
            }
            used(task, libc::RUSAGE_SELF).and_then(|own| {
                let children = used(task, libc::RUSAGE_CHILDREN)?;
                lock(&task.memory).write(a[0], &words(&[ticks(own), 0, ticks(children), 0])).map(|()| now)
            })
        }
        _ => return None,
    })
}

fn limit(task: &Task, [pid, resource, new, old, ..]: Arguments) -> Result {
    let index = usize::try_from(resource).ok().filter(|&resource| resource < RESOURCES).ok_or(Errno::EINVAL)?;
    let new: Option<[u8; 16]> = if new == 0 { None } else { Some(lock(&task.memory).array(new)?) };
    let pid = if pid == 0 { task.pid } else { pid as i32 };
    let mut table = lock(&task.kernel.table);
    let who = table.process(task.pid)?.credentials.clone();
    let process = table.process(pid)?;
    if pid != task.pid && !who.may_limit(&process.credentials) {
        return Err(Errno::EPERM);
    }
    let limit = &mut process.limits.0[index];
    let before = *limit;
    if let Some(bytes) = new {
        let (soft, hard) = (word(&bytes, 0), word(&bytes, 8));
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        if hard > before.1 && !who.has(CapabilitySet::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
        *limit = (soft, hard);
        if resource as u32 == libc::RLIMIT_NOFILE && pid == task.pid {
            lock(&task.descriptors).limit = process.limits.descriptors();
        }
    }
    drop(table);
    if old == 0 { Ok(0) } else { lock(&task.memory).write(old, &words(&[before.0, before.1])).map(|()| 0) }
}

/// The processor time of a process, a thread, or the children that were waited for.
fn used(task: &Task, who: i32) -> Result<Duration> {
    let mut table = lock(&task.kernel.table);
    let process = table.process(task.pid)?;
    match who {
        libc::RUSAGE_SELF => Ok(process.processor_time()),
        libc::RUSAGE_CHILDREN => Ok(process.spent[1]),
        libc::RUSAGE_THREAD => Ok(crate::process::task::table::thread_time(task.handle.host_thread)),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct rusage`: all time is counted as the program's own, and nothing else is.
pub fn usage(time: Duration) -> Vec<u8> {
    let mut bytes = words(&[time.as_secs(), time.subsec_micros().into()]);
    bytes.resize(size_of::<libc::rusage>(), 0);
    bytes
}
