//! Descriptors that have no name: pipes, event counters, memory files.

use nix::errno::Errno;

use super::host::{self, Arg};
use super::{Arguments, files};
use crate::process::Result;
use crate::process::plain::half;
use crate::process::task::Task;
use crate::process::vm::lock;

const CLOSE: u64 = libc::O_CLOEXEC as u64;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_pipe => pipe(task, a[0], 0),
        libc::SYS_pipe2 => pipe(task, a[0], a[1]),
        libc::SYS_eventfd => event(task, a[0], 0),
        libc::SYS_eventfd2 => event(task, a[0], a[1]),
        libc::SYS_memfd_create => lock(&task.memory).string(a[0], 250).and_then(|name| {
            let name = host::terminated(&name)?;
            let fd = host::call(number, [Arg::In(&name), (a[1] | u64::from(libc::MFD_CLOEXEC)).into()])?;
            files::adopt(task, fd, "/memfd:", a[1] & u64::from(libc::MFD_CLOEXEC) != 0)
        }),
        _ => return None,
    })
}

fn event(task: &Task, count: u64, flags: u64) -> Result {
    let fd = host::call(libc::SYS_eventfd2, [count.into(), (flags | libc::EFD_CLOEXEC as u64).into()])?;
    files::adopt(task, fd, "anon_inode:[eventfd]", flags & libc::EFD_CLOEXEC as u64 != 0)
}

fn pipe(task: &Task, to: u64, flags: u64) -> Result {
    let mut ends = [0; 8];
    host::call(libc::SYS_pipe2, [Arg::from(&mut ends), (flags | CLOSE).into()])?;
    pair(task, to, &ends, "pipe:", flags & CLOSE != 0)
}

/// Passes two new descriptors of the host to the guest.
pub fn pair(task: &Task, to: u64, ends: &[u8; 8], name: &str, close_on_exec: bool) -> Result {
    let end = |at| u64::from(half(ends, at));
    let first = files::adopt(task, end(0), name, close_on_exec);
    let second = files::adopt(task, end(4), name, close_on_exec);
    let written = match (first, second) {
        (Ok(first), Ok(second)) => {
            let bytes = [(first as u32).to_le_bytes(), (second as u32).to_le_bytes()].concat();
            lock(&task.memory).write(to, &bytes)
        }
        _ => Err(Errno::EMFILE),
    };
    if written.is_err() {
        for descriptor in [first, second].into_iter().flatten() {
            let _ = lock(&task.descriptors).close(descriptor);
        }
    }
    written.map(|()| 0)
}
