//! The table of processes: who is whose child, what waits to be delivered, who is to end. One lock, held briefly.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use nix::errno::Errno;

use super::gate::{self, Flag};
use super::signal::{Action, Disposition, Info, Set};
use crate::process::Result;
use crate::process::files::Credentials;
use crate::process::files::OpenFile;
use crate::process::memory::Memory;
use crate::process::syscalls::host::{self, Arg};
use crate::process::syscalls::limits::Limits;
use crate::process::vm::vcpu::Kick;

/// A thread as others see it.
#[derive(Debug)]
pub struct Handle {
    /// Set when there is something to look at.
    pub flag: Flag,
    /// Gets the vCPU out of the guest.
    pub kick: Kick,
    /// The host thread.
    pub host_thread: i32,
}

impl Handle {
    /// Makes the thread look at the table before it goes on.
    pub fn interrupt(&self) {
        self.flag.set();
        self.kick.set(true);
        gate::wake(self.host_thread);
    }
}

/// A thread's record.
#[derive(Debug)]
pub struct Thread {
    /// How to reach it; none before its host thread runs.
    pub handle: Option<Arc<Handle>>,
    /// Signals for this thread.
    pub pending: VecDeque<Info>,
    /// Signals that are kept back.
    pub blocked: Set,
    /// Signals that a call waits for, blocked or not.
    pub awaited: Set,
    /// What to block again once the handler of a signal that ended a sigsuspend has been set up.
    pub restore: Option<Set>,
    /// It is ending; the record goes with the thread itself.
    pub ending: bool,
}

impl Thread {
    /// Whether a signal is for this thread to act on now.
    fn takes(&self, signal: u8) -> bool {
        !self.blocked.has(signal) || self.awaited.has(signal)
    }
}

/// How a process ended, as wait reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By exit, with a code.
    Exited(u8),
    /// By a signal.
    Killed(u8),
}

impl Status {
    /// In the encoding of wait(2).
    pub fn bits(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code) << 8,
            Self::Killed(signal) => u32::from(signal),
        }
    }

    /// As a shell gives it: 128+n for signal n.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Killed(signal) => 128 + i32::from(signal),
        }
    }
}

/// A process's record.
#[derive(Debug)]
pub struct Process {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// Its threads; none is left in a zombie.
    pub threads: BTreeMap<i32, Thread>,
    /// Signals for any of its threads.
    pub pending: VecDeque<Info>,
    /// What signals do.
    pub actions: Box<[Action; 65]>,
    /// It is ending, and this is how.
    pub ending: Option<Status>,
    /// Threads other than this one are to end: it executes a program.
    pub sole: Option<i32>,
    /// How it ended; nobody has waited for it yet.
    pub zombie: Option<Status>,
    /// What its parent is sent when it ends; 0 for nothing.
    pub exit_signal: u8,
    /// Stopped by a signal.
    pub stopped: Option<u8>,
    /// A stop or continuation that no wait has reported yet, as wait's status.
    pub news: Option<u32>,
    /// Who it runs as.
    pub credentials: Arc<Credentials>,
    /// Its niceness.
    pub nice: i32,
    /// Its memory, as long as it has any.
    pub memory: Weak<Mutex<Memory>>,
    /// Its limits, which its children inherit.
    pub limits: Limits,
    /// The descriptors that signals are read from, with which they are.
    pub signal_files: Vec<(Set, Weak<OpenFile>)>,
    /// Processor time of its threads that have ended, and of its children that were waited for.
    pub spent: [Duration; 2],
    /// The path of its program.
    pub executable: Vec<u8>,
    /// Its arguments, as `/proc/self/cmdline` shows them.
    pub arguments: Vec<Vec<u8>>,
}

/// All processes.
#[derive(Debug)]
pub struct Table {
    /// By process id.
    pub processes: BTreeMap<i32, Process>,
    /// By session id, those that have a terminal or were begun from outside.
    pub sessions: BTreeMap<i32, Session>,
    /// Most threads of all processes at once.
    pub most_threads: usize,
    last: i32,
}

/// What a session has beside its processes.
#[derive(Debug)]
pub struct Session {
    /// The process group in the foreground.
    pub foreground: i32,
    /// Its terminal.
    pub terminal: Option<Arc<OpenFile>>,
}

/// Most threads at once where no limit of tasks says otherwise.
pub const MOST_THREADS: usize = 4096;
/// Most signals that wait for a process, whatever limit it has set: each is memory of the VMM.
const MOST_PENDING: u64 = 8192;
/// Signals from here on wait as often as they are sent.
const FIRST_QUEUED: u8 = 32;
/// The ids that are given out.
const LAST_ID: i32 = 32768;

impl Table {
    /// An empty table for at most so many threads.
    pub fn new(most_threads: usize) -> Self {
        Self { processes: BTreeMap::new(), sessions: BTreeMap::new(), most_threads, last: 0 }
    }

    /// An id that no process, thread, group or session has.
    pub fn free_id(&mut self) -> Result<i32> {
        if self.processes.values().map(|process| process.threads.len().max(1)).sum::<usize>() >= self.most_threads {
            return Err(Errno::EAGAIN);
        }
        for _ in 0..LAST_ID {
            self.last = if self.last >= LAST_ID { 2 } else { self.last + 1 };
            let id = self.last;
            let taken = self.processes.iter().any(|(&pid, process)| {
                pid == id || process.group == id || process.session == id || process.threads.contains_key(&id)
            });
            if !taken {
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// A process that has not been waited for.
    pub fn process(&mut self, pid: i32) -> Result<&mut Process> {
        self.processes.get_mut(&pid).ok_or(Errno::ESRCH)
    }

    /// The process a thread belongs to.
    pub fn process_of(&self, thread: i32) -> Option<i32> {
        self.processes.iter().find(|(_, process)| process.threads.contains_key(&thread)).map(|(&pid, _)| pid)
    }

    /// Passes on what the VMM was sent for a process: to that, but what a terminal sends to the group in the foreground of its
    /// session.
    pub fn pass_on(&mut self, pid: i32, signal: i32) {
        let targets = match (self.sessions.get(&pid), signal) {
            (Some(session), libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGWINCH) => {
                self.group(session.foreground)
            }
            _ => vec![pid],
        };
        for pid in targets {
            self.send_from_outside(pid, Info::kernel(signal));
        }
    }

    /// Sends a signal to a process.
    pub fn send(&mut self, pid: i32, info: Info) {
        let first = self.is_first(pid);
        if !first || self.processes.get(&pid).is_some_and(|process| process.handles(info.signal)) {
            self.send_from_outside(pid, info);
        }
    }

    /// Sends a signal to a process that even the first one does not survive unless it handles it: a person's Ctrl-C or `stop`.
    pub fn send_from_outside(&mut self, pid: i32, info: Info) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if !process.accepts(&info) {
            return;
        }
        if !process.keeps(&process.pending, info.signal) {
            return;
        }
        process.pending.push_back(info);
        process.tell_files();
        let ready = |thread: &&Thread| !thread.ending && thread.takes(info.signal);
        let chosen = process.threads.values().find(ready);
        if let Some(handle) = chosen.and_then(|thread| thread.handle.as_ref()) {
            handle.interrupt();
        } else if info.signal == libc::SIGCONT as u8 || info.signal == libc::SIGKILL as u8 {
            process.interrupt_all();
        }
    }

    /// Sends a signal to one thread.
    pub fn send_to_thread(&mut self, pid: i32, tid: i32, info: Info) -> Result<()> {
        let first = self.is_first(pid);
        let process = self.process(pid)?;
        if !process.threads.contains_key(&tid) {
            return Err(Errno::ESRCH);
        }
        if (first && !process.handles(info.signal)) || !process.accepts(&info) {
            return Ok(());
        }
        let keeps = process.threads.get(&tid).is_some_and(|thread| process.keeps(&thread.pending, info.signal));
        if keeps && let Some(thread) = process.threads.get_mut(&tid) {
            thread.pending.push_back(info);
        }
        process.tell_files();
        let thread = process.threads.get_mut(&tid).ok_or(Errno::ESRCH)?;
        if let Some(handle) = thread.handle.as_ref().filter(|_| thread.takes(info.signal)) {
            handle.interrupt();
        }
        Ok(())
    }

    /// Whether this is the first process, which signals of others reach only where it handles them, as in a container.
    fn is_first(&self, pid: i32) -> bool {
        self.processes.keys().next() == Some(&pid)
    }

    /// Whether the guest ends with the next thread of this process.
    pub fn ends_with(&self, pid: i32) -> bool {
        self.is_first(pid) && self.processes.get(&pid).is_some_and(|process| process.threads.len() == 1)
    }

    /// The processes of a group.
    pub fn group(&self, group: i32) -> Vec<i32> {
        self.processes.iter().filter(|(_, process)| process.group == group).map(|(&pid, _)| pid).collect()
    }

    /// The children of a process.
    pub fn children(&self, parent: i32) -> Vec<i32> {
        self.processes.iter().filter(|(_, process)| process.parent == parent).map(|(&pid, _)| pid).collect()
    }
}

impl Process {
    /// Takes a signal that waits for a thread of the process, or for any of them.
    pub fn take(&mut self, tid: i32, wanted: impl Fn(u8) -> bool) -> Option<Info> {
        let find = |queue: &VecDeque<Info>| queue.iter().position(|info| wanted(info.signal));
        let own = self.threads.get_mut(&tid).map(|thread| &mut thread.pending);
        match own.and_then(|queue| find(queue).and_then(|at| queue.remove(at))) {
            None => find(&self.pending).and_then(|at| self.pending.remove(at)),
            taken => taken,
        }
    }

    /// Whether a signal said with these words has not been taken yet.
    pub fn has_pending(&self, info: &Info) -> bool {
        let own = self.threads.values().flat_map(|thread| &thread.pending);
        self.pending.iter().chain(own).any(|other| other == info)
    }

    /// Has signals of `mask` read from a descriptor.
    pub fn watch(&mut self, file: &Arc<OpenFile>, mask: Set) {
        self.signal_files.retain(|(_, other)| other.strong_count() > 0 && other.as_ptr() != Arc::as_ptr(file));
        self.signal_files.push((mask, Arc::downgrade(file)));
        self.tell_files();
    }

    /// Which signals are read from a descriptor.
    pub fn watched(&self, file: &OpenFile) -> Set {
        self.signal_files
            .iter()
            .find(|(_, other)| std::ptr::eq(other.as_ptr(), file))
            .map_or(Set::default(), |known| known.0)
    }

    /// Makes the descriptors ready that a signal can be read from.
    pub fn tell_files(&self) {
        let waiting = |mask: Set| {
            let own = self.threads.values().flat_map(|thread| &thread.pending);
            self.pending.iter().chain(own).any(|info| mask.has(info.signal))
        };
        for file in self.signal_files.iter().filter(|(mask, _)| waiting(*mask)).filter_map(|(_, file)| file.upgrade()) {
            let count = 1u64.to_le_bytes();
            let _ = host::call(libc::SYS_write, [file.as_raw_fd().into(), Arg::In(&count), 8.into()]);
        }
    }

    /// The processor time of its threads, the VMM's work for them included.
    pub fn processor_time(&self) -> Duration {
        let threads = self.threads.values().filter_map(|thread| thread.handle.as_ref());
        threads.map(|handle| thread_time(handle.host_thread)).sum::<Duration>() + self.spent[0]
    }

    /// Makes every thread look at the table.
    pub fn interrupt_all(&self) {
        for handle in self.threads.values().filter_map(|thread| thread.handle.as_ref()) {
            handle.interrupt();
        }
    }

    /// Whether a signal that a program gives words along may be queued.
    ///
    /// # Errors
    /// `EAGAIN` where too many wait.
    pub fn has_room_for(&self, signal: u8) -> Result<()> {
        if signal >= FIRST_QUEUED && self.is_full() { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// Whether no more signals are queued.
    fn is_full(&self) -> bool {
        let own = self.threads.values().map(|thread| thread.pending.len());
        (self.pending.len() + own.sum::<usize>()) as u64 >= self.limits.pending().min(MOST_PENDING)
    }

    /// Whether a signal is put in this queue: where it waits there already only one that queues is, as long as there is room.
    fn keeps(&self, queue: &VecDeque<Info>, signal: u8) -> bool {
        let again = queue.iter().any(|other| other.signal == signal);
        !again || signal >= FIRST_QUEUED && !self.is_full()
    }

    /// Whether there is a handler for a signal, or a thread that waits for it with the signal blocked.
    fn handles(&self, signal: u8) -> bool {
        self.actions[usize::from(signal)].handler > 1 || self.threads.values().all(|thread| thread.blocked.has(signal))
    }

    /// Whether a signal has to be kept; signals that stop or continue take effect on each other right away.
    fn accepts(&mut self, info: &Info) -> bool {
        let signal = info.signal;
        if self.zombie.is_some() {
            return false;
        }
        let stops = |other: &Info| Disposition::of_default(other.signal) == Disposition::Stop;
        match Disposition::of_default(signal) {
            Disposition::Continue => {
                self.pending.retain(|other| !stops(other));
                self.threads.values_mut().for_each(|thread| thread.pending.retain(|other| !stops(other)));
                if self.stopped.take().is_some() {
                    self.news = Some(0xffff);
                    self.interrupt_all();
                }
            }
            Disposition::Stop => self.pending.retain(|other| other.signal != libc::SIGCONT as u8),
            _ => {}
        }
        if signal == libc::SIGKILL as u8 {
            self.stopped = None;
        }
        let blocked = self.threads.values().all(|thread| thread.blocked.has(signal));
        blocked || self.actions[usize::from(signal)].disposition(signal) != Disposition::Ignore
    }
}

/// The processor time of a thread of the host; zero once it is gone.
pub fn thread_time(host_thread: i32) -> Duration {
    // The clock of another thread (pthread_getcpuclockid(3)): scheduled time, of a thread.
    let clock = !host_thread << 3 | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is filled by the call, or left as it is.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
