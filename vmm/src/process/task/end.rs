//! How tasks end: a thread, a process, and who waits for it.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::errno::Errno;

use super::signal::Info;
use super::table::{self, Process, Status};
use super::{Table, Task};
use crate::process::Result;
use crate::process::syscalls::host::{self, Arg};
use crate::process::vm::lock;
#[cfg(any(test, feature = "fuzzing"))]
use crate::process::vm::vcpu::Vcpu;

/// A child that wait found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Its id.
    pub pid: i32,
    /// Its status, encoded as wait(2) does.
    pub status: u32,
    /// The processor time it has used, with its children's.
    pub spent: Duration,
}

impl Task {
    /// Makes the whole process end.
    pub fn end_process(&mut self, status: Status) {
        let mut table = lock(&self.kernel.table);
        if let Ok(process) = table.process(self.pid) {
            process.ending.get_or_insert(status);
            process.interrupt_all();
        }
        self.handle.flag.set();
    }

    /// Makes the whole process end for want of memory, which is counted for who looks from outside.
    pub fn end_for_want_of_memory(&mut self) {
        if let Some(counter) = &self.kernel.oom {
            let _ = host::call(libc::SYS_write, [counter.as_fd().into(), Arg::In(&1u64.to_le_bytes()), 8.into()]);
        }
        self.end_process(Status::Killed(libc::SIGKILL as u8));
    }

    /// Makes this thread end; with the last thread the process ends.
    pub fn end_this_thread(&mut self, code: u8) {
        let mut table = lock(&self.kernel.table);
        if let Ok(process) = table.process(self.pid) {
            // Until the thread is gone its record says so: who executes a program meanwhile takes over the id of the first.
            if let Some(thread) = process.threads.get_mut(&self.tid) {
                thread.ending = true;
            }
            if process.threads.values().all(|thread| thread.ending) {
                process.ending.get_or_insert(Status::Exited(code));
            }
        }
        self.handle.flag.set();
    }

    /// Drops a thread that never ran, but for its vCPU.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn give_up(self) -> Vcpu {
        self.vcpu
    }

    /// What is left to do when a thread has left its loop.
    pub(super) fn end_thread(mut self) {
        self.release_robust_futexes();
        if self.clear_child_tid != 0 {
            // A process that shares its memory with nobody has nobody who looks.
            let cleared = lock(&self.memory).write(self.clear_child_tid, &[0; 4]);
            if cleared.is_ok() {
                let _ = self.wake_futex(self.clear_child_tid, 1);
            }
        }
        self.release_vfork();
        let kernel = self.kernel.clone();
        let (pid, tid, host_thread) = (self.pid, self.tid, self.handle.host_thread);
        // The memory and the files go before anyone learns of the end; with the first process all goes with the VMM, at once.
        let Self { memory, descriptors, place, vcpu, .. } = self;
        let held = (memory, descriptors, place);
        if lock(&kernel.table).ends_with(pid) {
            std::mem::forget(held);
        } else {
            drop(held);
        }
        kernel.vm.put_vcpu(vcpu);

        let mut table = lock(&kernel.table);
        if let Ok(process) = table.process(pid) {
            process.spent[0] += table::thread_time(host_thread);
            process.threads.remove(&tid);
            if process.threads.is_empty() {
                let status = process.ending.unwrap_or(Status::Exited(0));
                kernel.alarms.forget(pid, true);
                table.bury(pid, status);
            }
        }
        drop(table);
        kernel.changed.notify();
    }

    /// Lets the parent go on that waits since vfork.
    pub(super) fn release_vfork(&mut self) {
        if let Some(event) = self.vfork.take() {
            event.notify();
        }
    }

    /// Waits for a child: `wanted` as for wait4(2).
    pub fn wait(&mut self, wanted: i32, options: i32, keep: bool) -> Result<Option<Waited>> {
        let kernel = self.kernel.clone();
        loop {
            let seen = kernel.changed.now();
            let mut table = lock(&kernel.table);
            let group = table.process(self.pid)?.group;
            let matches = |pid: i32, process: &Process| match wanted {
                -1 => true,
                0 => process.group == group,
                wanted if wanted < 0 => process.group == wanted.wrapping_neg(),
                wanted => pid == wanted,
            };
            let children: Vec<i32> =
                table.children(self.pid).into_iter().filter(|pid| matches(*pid, &table.processes[pid])).collect();
            if children.is_empty() {
                return Err(Errno::ECHILD);
            }
            for pid in children {
                let child = table.process(pid)?;
                if let Some(status) = child.zombie.filter(|_| options & libc::WEXITED != 0) {
                    let spent = child.spent.iter().sum();
                    if !keep {
                        table.processes.remove(&pid);
                        table.process(self.pid)?.spent[1] += spent;
                    }
                    return Ok(Some(Waited { pid, status: status.bits(), spent }));
                }
                let asked = |news: u32| {
                    let bit = if news == 0xffff { libc::WCONTINUED } else { libc::WUNTRACED };
                    options & bit != 0
                };
                if let Some(status) = child.news.filter(|&news| asked(news)) {
                    if !keep {
                        child.news = None;
                    }
                    return Ok(Some(Waited { pid, status, spent: Duration::ZERO }));
                }
            }
            drop(table);
            if options & libc::WNOHANG != 0 {
                return Ok(None);
            }
            kernel.changed.wait(&self.handle.flag, seen, None)?;
        }
    }
}

impl Table {
    /// Turns a process without threads into a zombie and tells its parent.
    fn bury(&mut self, pid: i32, status: Status) {
        // Of a session only its leader speaks to a terminal.
        self.sessions.remove(&pid);
        let Ok(process) = self.process(pid) else { return };
        process.zombie = Some(status);
        process.pending.clear();
        let (parent, signal, user) = (process.parent, process.exit_signal, process.credentials.user.real);
        // Orphans go to the first process.
        let first = self.processes.keys().next().copied().unwrap_or(1);
        for child in self.children(pid) {
            if let Ok(child) = self.process(child) {
                child.parent = first;
            }
        }
        let Ok(adult) = self.process(parent) else { return };
        let action = adult.actions[libc::SIGCHLD as usize];
        let forgotten = action.handler == 1 || action.flags & libc::SA_NOCLDWAIT as u64 != 0;
        if signal > 0 {
            let (code, value) = match status {
                Status::Exited(code) => (libc::CLD_EXITED, code),
                Status::Killed(signal) => (libc::CLD_KILLED, signal),
            };
            let mut info = Info::from_process(signal, code, pid, user);
            info.fields[1] = u64::from(value);
            self.send(parent, info);
        }
        if forgotten {
            self.processes.remove(&pid);
        }
    }
}
