//! How tasks begin: the first process, clone, execve.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_runtime::span::{self, Phase};
use kvm_bindings::kvm_regs;
use nix::errno::Errno;

use super::gate::{self, Event};
use super::signal::{AlternateStack, Set};
use super::table::{Handle, Process, Session, Status, Thread};
use super::{Kernel, Place, Task};
use crate::process::Result;
use crate::process::files::{Credentials, Descriptors};
use crate::process::loader::{self, Loaded, Program};
use crate::process::memory::Memory;
use crate::process::vm::lock;
use crate::process::vm::vcpu::Vcpu;

/// Stack of a host thread. Nothing recurses; what is long stands on the heap.
const HOST_STACK: usize = 256 << 10;

/// What clone is to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneRequest {
    /// `CLONE_` flags.
    pub flags: u64,
    /// The signal to the parent when the child ends.
    pub exit_signal: u8,
    /// The stack pointer to begin with; 0 for the parent's.
    pub stack: u64,
    /// The base of FS, with `CLONE_SETTLS`.
    pub tls: u64,
    /// Where the parent's memory gets the id, with `CLONE_PARENT_SETTID`.
    pub parent_tid: u64,
    /// Where the child's memory gets the id, or has it cleared at the end.
    pub child_tid: u64,
}

/// Makes a thread with its vCPU, where that is to run.
pub(in crate::process) type MakeTask = Box<dyn FnOnce(Arc<Handle>, Vcpu) -> Task + Send>;

/// Everything a new host thread needs to begin.
struct Start {
    task: MakeTask,
    registers: kvm_regs,
    tls: (u64, u64),
    root: u64,
    extended: Option<Box<kvm_bindings::kvm_xsave>>,
    nice: i32,
}

impl Kernel {
    /// Starts a process that is nobody's child, the first or one of another session.
    pub fn begin(
        self: &Arc<Self>,
        loaded: Loaded,
        (arguments, nice): (Vec<Vec<u8>>, i32),
        descriptors: Descriptors,
        place: Place,
        who: Arc<Credentials>,
    ) -> Result<i32> {
        gate::install();
        let registers = kvm_regs { rip: loaded.entry, rsp: loaded.stack, rflags: 0x202, ..Default::default() };
        let root = loaded.memory.root();
        let said = (loaded.path, arguments, nice);
        let (pid, task) = self.admit(loaded.memory, said, descriptors, place, who)?;
        let start = Start { task, registers, tls: (0, 0), root, extended: None, nice };
        self.spawn((pid, pid), start).inspect_err(|_| {
            let mut table = lock(&self.table);
            table.processes.remove(&pid);
            table.sessions.remove(&pid);
        })?;
        Ok(pid)
    }

    /// Makes the record of a process that is nobody's child, with its path, arguments and niceness; its id, and what makes its
    /// first thread.
    pub(in crate::process) fn admit(
        self: &Arc<Self>,
        memory: Memory,
        (executable, arguments, nice): (Vec<u8>, Vec<Vec<u8>>, i32),
        descriptors: Descriptors,
        place: Place,
        who: Arc<Credentials>,
    ) -> Result<(i32, MakeTask)> {
        // Descriptor 0 is the terminal, if it is one.
        let terminal = descriptors.get(0).ok().filter(|file| nix::unistd::isatty(file.as_fd()) == Ok(true));
        let memory = Arc::new(Mutex::new(memory));
        let mut table = lock(&self.table);
        let pid = table.free_id()?;
        table.sessions.insert(pid, Session { foreground: pid, terminal });
        let process = Process {
            parent: 0,
            group: pid,
            session: pid,
            threads: BTreeMap::from([(pid, Thread::new(Set::default()))]),
            pending: VecDeque::new(),
            actions: Box::new([super::signal::Action::default(); 65]),
            ending: None,
            sole: None,
            zombie: None,
            exit_signal: 0,
            stopped: None,
            news: None,
            credentials: who,
            nice,
            memory: Arc::downgrade(&memory),
            limits: self.limits,
            signal_files: Vec::new(),
            spent: [Duration::ZERO; 2],
            executable,
            arguments,
        };
        table.processes.insert(pid, process);
        drop(table);
        let kernel = self.clone();
        let task = Box::new(move |handle, vcpu| Task {
            kernel,
            pid,
            tid: pid,
            vcpu,
            handle,
            memory,
            descriptors: Arc::new(Mutex::new(descriptors)),
            place: Arc::new(Mutex::new(place)),
            alternate_stack: AlternateStack::default(),
            clear_child_tid: 0,
            robust_list: 0,
            interrupted: None,
            returning: None,
            vfork: None,
            last_fault: None,
        });
        Ok((pid, task))
    }

    /// Waits for the end of a process that is nobody's child.
    pub fn wait(&self, pid: i32) -> Result<Status> {
        let never = super::Flag::default();
        loop {
            let seen = self.changed.now();
            if let Some(status) = lock(&self.table).process(pid)?.zombie {
                return Ok(status);
            }
            self.changed.wait(&never, seen, None)?;
        }
    }

    /// Starts the host thread of a task whose record is in the table.
    fn spawn(self: &Arc<Self>, (pid, tid): (i32, i32), start: Start) -> Result<()> {
        span::mark(Phase::VmCreate);
        let mut vcpu = self.vm.vcpu().map_err(|_| Errno::EAGAIN)?;
        *vcpu.registers() = start.registers;
        vcpu.set_fs_base(start.tls.0);
        vcpu.set_gs_base(start.tls.1);
        vcpu.set_root(start.root);
        let set = match &start.extended {
            Some(extended) => vcpu.set_extended(extended),
            None => vcpu.reset_extended(),
        };
        if set.is_err() {
            self.vm.put_vcpu(vcpu);
            return Err(Errno::EAGAIN);
        }
        span::mark(Phase::Load);
        let kernel = self.clone();
        let kick = vcpu.kick();
        kick.set(false);
        // Where there is no thread to take it, it goes back.
        let handed = Arc::new(Mutex::new(Some(vcpu)));
        let given = handed.clone();
        let run = move || {
            let vcpu = lock(&given).take().expect("it is put there before there is a thread");
            drop(given);
            // SAFETY: a plain system call without arguments.
            let host_thread = unsafe { libc::gettid() };
            let handle = Arc::new(Handle { flag: super::Flag::default(), kick, host_thread });
            // A working directory of its own: some calls of the host take a path only.
            let _ = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS);
            // Who was begun from outside may be nicer than the thread that has begun it.
            // SAFETY: a plain system call.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, start.nice) };
            // Signals may have come before there was a handle.
            handle.flag.set();
            let mut table = lock(&kernel.table);
            if let Some(thread) = table.process(pid).ok().and_then(|process| process.threads.get_mut(&tid)) {
                thread.handle = Some(handle.clone());
            }
            drop(table);
            drop(kernel);
            (start.task)(handle, vcpu).run();
        };
        std::thread::Builder::new().stack_size(HOST_STACK).spawn(run).map(drop).map_err(|_| {
            if let Some(vcpu) = lock(&handed).take() {
                self.vm.put_vcpu(vcpu);
            }
            Errno::EAGAIN
        })
    }
}

impl Thread {
    /// A thread that blocks these signals.
    pub fn new(blocked: Set) -> Self {
        Self { handle: None, pending: VecDeque::new(), blocked, awaited: Set::default(), restore: None, ending: false }
    }
}

impl Task {
    /// Makes a thread or a process.
    pub fn clone_task(&mut self, request: &CloneRequest) -> Result {
        let has = |flag: i32| request.flags & u64::from(flag.cast_unsigned()) != 0;
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        if has(namespaces) {
            return Err(Errno::EPERM);
        }
        let thread = has(libc::CLONE_THREAD);
        if thread && !(has(libc::CLONE_VM) && has(libc::CLONE_SIGHAND)) {
            return Err(Errno::EINVAL);
        }
        let memory = if has(libc::CLONE_VM) {
            self.memory.clone()
        } else {
            let copy = lock(&self.memory).fork()?;
            Arc::new(Mutex::new(copy))
        };
        let descriptors = if has(libc::CLONE_FILES) {
            self.descriptors.clone()
        } else {
            let copy = lock(&self.descriptors).clone();
            Arc::new(Mutex::new(copy))
        };
        let place = if has(libc::CLONE_FS) {
            self.place.clone()
        } else {
            let copy = lock(&self.place).clone();
            Arc::new(Mutex::new(copy))
        };
        let extended = Some(self.vcpu.extended().map_err(|_| Errno::EAGAIN)?);
        let mut registers = *self.vcpu.registers();
        registers.rax = 0;
        if request.stack != 0 {
            registers.rsp = request.stack;
        }
        let fs = if has(libc::CLONE_SETTLS) { request.tls } else { self.vcpu.fs_base() };
        let tls = (fs, self.vcpu.gs_base());
        let root = lock(&memory).root();

        let kernel = self.kernel.clone();
        let mut table = lock(&kernel.table);
        let tid = table.free_id()?;
        let parent = table.process(self.pid)?;
        let nice = parent.nice;
        let blocked = parent.threads.get(&self.tid).map_or_else(Set::default, |thread| thread.blocked);
        let pid = if thread {
            parent.threads.insert(tid, Thread::new(blocked));
            self.pid
        } else {
            let child = Process {
                parent: if has(libc::CLONE_PARENT) { parent.parent } else { self.pid },
                group: parent.group,
                session: parent.session,
                threads: BTreeMap::from([(tid, Thread::new(blocked))]),
                pending: VecDeque::new(),
                actions: parent.actions.clone(),
                ending: None,
                sole: None,
                zombie: None,
                exit_signal: request.exit_signal,
                stopped: None,
                news: None,
                credentials: parent.credentials.clone(),
                nice: parent.nice,
                memory: Arc::downgrade(&memory),
                limits: parent.limits,
                signal_files: parent.signal_files.clone(),
                spent: [Duration::ZERO; 2],
                executable: parent.executable.clone(),
                arguments: parent.arguments.clone(),
            };
            table.processes.insert(tid, child);
            tid
        };
        drop(table);

        if has(libc::CLONE_PARENT_SETTID) {
            let _ = lock(&self.memory).write(request.parent_tid, &tid.to_le_bytes());
        }
        if has(libc::CLONE_CHILD_SETTID) {
            let _ = lock(&memory).write(request.child_tid, &tid.to_le_bytes());
        }
        let vfork = has(libc::CLONE_VFORK).then(|| Arc::new(Event::default()));
        let shared_memory = has(libc::CLONE_VM) && !has(libc::CLONE_VFORK);
        let alternate_stack = if shared_memory { AlternateStack::default() } else { self.alternate_stack };
        let clear_child_tid = if has(libc::CLONE_CHILD_CLEARTID) { request.child_tid } else { 0 };
        let (its_kernel, its_vfork) = (kernel.clone(), vfork.clone());
        let task = Box::new(move |handle, vcpu| Task {
            kernel: its_kernel,
            pid,
            tid,
            vcpu,
            handle,
            memory,
            descriptors,
            place,
            alternate_stack,
            clear_child_tid,
            robust_list: 0,
            interrupted: None,
            returning: None,
            vfork: its_vfork,
            last_fault: None,
        });
        if let Err(error) = kernel.spawn((pid, tid), Start { task, registers, tls, root, extended, nice }) {
            let mut table = lock(&kernel.table);
            if thread {
                table.process(pid)?.threads.remove(&tid);
            } else {
                table.processes.remove(&pid);
            }
            return Err(error);
        }
        if let Some(vfork) = vfork {
            let never = super::Flag::default();
            while vfork.now() == 0 {
                let _ = vfork.wait(&never, 0, None);
            }
        }
        Ok(tid as u64)
    }

    /// Executes a program in place of this one.
    pub fn execute(&mut self, program: Program) -> Result<()> {
        let kernel = self.kernel.clone();
        let who = self.credentials()?;
        let arguments = program.arguments.clone();
        let loaded = loader::load(&kernel.vm, &kernel.mapped, &kernel.root, program, &who)?;
        self.become_sole()?;
        kernel.alarms.forget(self.pid, false);

        let mut table = lock(&kernel.table);
        let process = table.process(self.pid)?;
        process.sole = None;
        process.executable = loaded.path;
        process.arguments = arguments;
        let root = loaded.memory.root();
        let memory = Arc::new(Mutex::new(loaded.memory));
        process.memory = Arc::downgrade(&memory);
        for action in process.actions.iter_mut().filter(|action| action.handler > 1) {
            *action = super::signal::Action::default();
        }
        if self.tid != self.pid
            && let Some(thread) = process.threads.remove(&self.tid)
        {
            process.threads.insert(self.pid, thread);
            self.tid = self.pid;
        }
        drop(table);

        let registers = kvm_regs { rip: loaded.entry, rsp: loaded.stack, rflags: 0x202, ..Default::default() };
        *self.vcpu.registers() = registers;
        self.vcpu.set_fs_base(0);
        self.vcpu.set_gs_base(0);
        self.vcpu.set_root(root);
        self.vcpu.reset_extended().map_err(|_| Errno::ENOMEM)?;
        self.memory = memory;
        let mut own = lock(&self.descriptors).clone();
        own.execute();
        self.descriptors = Arc::new(Mutex::new(own));
        self.alternate_stack = AlternateStack::default();
        (self.clear_child_tid, self.robust_list) = (0, 0);
        self.release_vfork();
        Ok(())
    }

    /// Ends the other threads of the process.
    fn become_sole(&mut self) -> Result<()> {
        let kernel = self.kernel.clone();
        loop {
            let seen = kernel.changed.now();
            let mut table = lock(&kernel.table);
            let process = table.process(self.pid)?;
            if process.ending.is_some() || process.sole.is_some_and(|sole| sole != self.tid) {
                return Err(Errno::EAGAIN);
            }
            if process.threads.len() == 1 {
                return Ok(());
            }
            process.sole = Some(self.tid);
            for (_, thread) in process.threads.iter().filter(|(tid, _)| **tid != self.tid) {
                if let Some(handle) = &thread.handle {
                    handle.interrupt();
                }
            }
            drop(table);
            let never = super::Flag::default();
            let _ = kernel.changed.wait(&never, seen, None);
        }
    }
}
