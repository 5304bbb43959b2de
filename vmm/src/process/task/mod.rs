//! Tasks: guest threads, each one a host thread with a vCPU.
//!
//! - [`gate`] calls that block and how they are interrupted;
//! - [`table`] all processes and what waits for them;
//! - [`signal`] delivery and frames;
//! - [`alarm`] timers that send signals;
//! - [`life`] clone and execve, [`end`] exit and wait.

pub mod alarm;
mod end;
pub mod gate;
mod life;
pub mod signal;
pub mod table;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use berth_runtime::span;
use kvm_bindings::kvm_regs;
use nix::errno::Errno;

use self::alarm::Alarms;
use self::gate::{Event, Flag};
use self::signal::{AlternateStack, Info, Next};
use self::table::{Handle, Status, Table};
use super::Result;
use super::files::{Credentials, Descriptors, OpenFile, Root};
use super::memory::window::MappedFiles;
use super::memory::{Failure, Memory, Resolution};
use super::syscalls::{self, futex::Futexes, limits::Limits};
use super::vm::vcpu::{Exit, Vcpu};
use super::vm::{Vm, VmError, lock};

pub use end::Waited;
pub use life::CloneRequest;

/// What all processes of one guest share.
#[derive(Debug)]
pub struct Kernel {
    /// The VM.
    pub vm: Arc<Vm>,
    /// The files that are mapped.
    pub mapped: MappedFiles,
    /// The root directory.
    pub root: Root,
    /// Files of `/dev` that programs need, where the root has none: name and open file.
    pub devices: Vec<(Vec<u8>, OwnedFd)>,
    /// `/proc/self` of the VMM, where there is a `/proc`: its descriptors and mounts.
    pub own: Option<OwnedFd>,
    /// All processes. A thread that holds this lock takes no other but for [`Task::place`] and [`Task::descriptors`];
    /// one that holds the futexes' may take the memory's. Otherwise one is held at a time.
    pub table: Mutex<Table>,
    /// Counts what changes in the table: exits, stops, continuations.
    pub changed: Event,
    /// The interval timers.
    pub alarms: Alarms,
    /// Who waits on futexes.
    pub futexes: Futexes,
    /// The host name.
    pub host_name: Mutex<Vec<u8>>,
    /// What each session is held to at first.
    pub limits: Limits,
    /// Counts, for who looks from outside, whom the VMM has ended for want of memory.
    pub oom: Option<OwnedFd>,
    /// When the guest began.
    pub started: Instant,
    /// Writes every call to standard error.
    pub trace: bool,
}

/// Where a process is among the files.
#[derive(Debug, Clone)]
pub struct Place {
    /// The working directory.
    pub directory: Arc<OpenFile>,
    /// The bits that are not set in the modes of new files.
    pub umask: u32,
}

/// A guest thread, owned by its host thread.
#[derive(Debug)]
pub struct Task {
    /// What all share.
    pub kernel: Arc<Kernel>,
    /// The process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// The vCPU.
    pub vcpu: Vcpu,
    /// How others reach this thread.
    pub handle: Arc<Handle>,
    /// The memory, shared by threads.
    pub memory: Arc<Mutex<Memory>>,
    /// The descriptors, shared by threads.
    pub descriptors: Arc<Mutex<Descriptors>>,
    /// Working directory and umask, shared by threads.
    pub place: Arc<Mutex<Place>>,
    /// The stack for signal handlers.
    pub alternate_stack: AlternateStack,
    /// The word to clear and wake when the thread ends; 0 for none.
    pub clear_child_tid: u64,
    /// The list of robust futexes.
    pub robust_list: u64,
    /// The call that a signal interrupted and that may begin again.
    pub interrupted: Option<u64>,
    /// Where a signal handler returns to once ring 3 has the vector registers back.
    returning: Option<kvm_regs>,
    /// Who waits for this process to execute or exit, after vfork.
    vfork: Option<Arc<Event>>,
    /// The last fault: where it was and at which address, so that one that comes again is known.
    last_fault: Option<(u64, u64)>,
}

/// The `si_code` of an exception in floating-point arithmetic that nothing more is known of.
const FPE_FLTUNK: i32 = 14;
/// The exceptions of the x87 and of the vector unit.
const X87: u8 = 16;
const VECTOR: u8 = 19;

/// How a system call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With a value for RAX.
    Value(u64),
    /// The registers were set as a whole.
    Registers,
}

impl Task {
    /// Runs the thread to its end.
    fn run(mut self) {
        span::run();
        loop {
            if self.handle.flag.is_set() && self.look() == Next::End {
                break;
            }
            let exit = self.vcpu.run();
            if let Ok(exit) = exit {
                self.kernel.vm.exits.add(exit);
            }
            match exit {
                Ok(Exit::Syscall) => self.system_call(),
                Ok(Exit::PageFault(address)) => self.page_fault(address),
                Ok(Exit::Restored) => self.restored(),
                Ok(Exit::Fault(exception)) => self.other_fault(exception),
                Ok(Exit::NoPage) => self.no_page(),
                // Who interrupts sets the flag before the kick: the flag may be taken in between, and the kick be left. A look
                // takes it back.
                Ok(Exit::Interrupted) => self.handle.flag.set(),
                Err(error) => {
                    self.report(&error);
                    self.end_process(Status::Killed(libc::SIGKILL as u8));
                    break;
                }
            }
        }
        self.end_thread();
    }

    fn report(&self, error: &VmError) {
        eprintln!("berth-vmm: process {}: {error}", self.pid);
    }

    /// Serves a system call.
    fn system_call(&mut self) {
        self.last_fault = None;
        let registers = self.vcpu.registers();
        let number = registers.rax;
        let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        (registers.rip, registers.rflags) = (registers.rcx, registers.r11 | 2);
        let answer = syscalls::dispatch(self, number, arguments);
        if self.kernel.trace {
            eprintln!(
                "{} [{}] {} = {answer:?}",
                self.kernel.started.elapsed().as_micros(),
                self.tid,
                syscalls::describe(number, &arguments)
            );
        }
        match answer {
            Ok(Answer::Value(value)) => self.vcpu.registers().rax = value,
            Ok(Answer::Registers) => {}
            Err(Errno::EFAULT) if lock(&self.memory).exhausted => self.end_for_want_of_memory(),
            Err(error) => {
                self.vcpu.registers().rax = (-(error as i64)).cast_unsigned();
                if error == Errno::EINTR && syscalls::begins_again(number) {
                    self.interrupted = Some(number);
                    // Whatever woke the call has to be looked at, even if the flag was taken since.
                    self.handle.flag.set();
                }
            }
        }
    }

    /// Resolves a page fault, or sends a signal.
    fn page_fault(&mut self, address: u64) {
        let at = self.vcpu.registers().rip;
        let resolution = lock(&self.memory).fault(address);
        if self.kernel.trace {
            eprintln!(
                "{} [{}] fault at {at:#x}, address {address:#x}: {resolution:?}",
                self.kernel.started.elapsed().as_micros(),
                self.tid
            );
        }
        let signal = match resolution {
            Ok(Resolution::Changed) => {
                self.last_fault = None;
                return;
            }
            // The first time another thread may have been faster.
            Ok(Resolution::Nothing) if self.last_fault.replace((at, address)) != Some((at, address)) => return,
            Ok(Resolution::Nothing) | Err(Failure::Forbidden) => Info::fault(libc::SIGSEGV, 2, address),
            Err(Failure::NoArea) => Info::fault(libc::SIGSEGV, 1, address),
            Err(Failure::BehindFile) => Info::fault(libc::SIGBUS, 2, address),
            Err(Failure::NoMemory) => {
                self.end_for_want_of_memory();
                return;
            }
        };
        self.last_fault = None;
        self.force(signal);
    }

    /// Another exception than a page fault. Where the processor does not tell which the instruction does.
    fn other_fault(&mut self, exception: Option<u8>) {
        let at = self.vcpu.registers().rip;
        if self.kernel.trace {
            eprintln!("[{}] exception {exception:?} at {at:#x}", self.tid);
        }
        let info = match exception {
            Some(0) => Info::fault(libc::SIGFPE, 1, at),
            Some(1) => Info::fault(libc::SIGTRAP, 2, at),
            Some(3) => Info::fault(libc::SIGTRAP, 0x80, 0),
            Some(6) => Info::fault(libc::SIGILL, 2, at),
            Some(12) => Info::fault(libc::SIGBUS, 0x80, 0),
            Some(number @ (X87 | VECTOR)) => {
                Info::fault(libc::SIGFPE, self.floating_point_code(number).unwrap_or(FPE_FLTUNK), at)
            }
            Some(17) => Info::fault(libc::SIGBUS, 1, 0),
            Some(_) => Info::fault(libc::SIGSEGV, 0x80, 0),
            None => self.guess(at),
        };
        self.force(info);
    }

    /// What exception an instruction is likely to have raised.
    fn guess(&mut self, at: u64) -> Info {
        let (mut before, mut code) = ([0; 1], [0; 2]);
        let mut memory = lock(&self.memory);
        let read = memory.read(at, &mut code);
        let _ = memory.read(at.wrapping_sub(1), &mut before);
        drop(memory);
        match code {
            _ if read.is_err() => Info::fault(libc::SIGSEGV, 1, at),
            [0xcc, _] => {
                self.vcpu.registers().rip = at + 1;
                Info::fault(libc::SIGTRAP, 0x80, 0)
            }
            [0xf6 | 0xf7, _] | [0x40..=0x4f, 0xf6 | 0xf7] => Info::fault(libc::SIGFPE, 1, at),
            [0x0f, 0x0b | 0xb9 | 0xff] => Info::fault(libc::SIGILL, 2, at),
            // PVM leaves RIP behind a breakpoint.
            _ if before == [0xcc] => Info::fault(libc::SIGTRAP, 0x80, 0),
            _ => match [VECTOR, X87].into_iter().find_map(|unit| self.floating_point_code(unit)) {
                Some(code) => Info::fault(libc::SIGFPE, code, at),
                None => Info::fault(libc::SIGSEGV, 0x80, 0),
            },
        }
    }

    /// Which `FPE_…` of sigaction(2) an exception of the x87 or vector unit is, by what that says has happened and is not masked
    /// (Intel SDM volume 1, 8.5 and 11.5); `None` where nothing has.
    fn floating_point_code(&self, exception: u8) -> Option<i32> {
        let state = self.vcpu.extended().ok()?;
        let (happened, masked) = if exception == X87 {
            (state.region[0] >> 16, state.region[0])
        } else {
            (state.region[6], state.region[6] >> 7)
        };
        let code = match happened & !masked & 0x3f {
            0 => return None,
            what if what & 1 != 0 => 7,
            what if what & 1 << 2 != 0 => 3,
            what if what & 1 << 3 != 0 => 4,
            what if what & (1 << 1 | 1 << 4) != 0 => 5,
            _ => 6,
        };
        Some(code)
    }

    /// The host has no page behind a frame: the file of a window is shorter now.
    fn no_page(&mut self) {
        let at = self.vcpu.registers().rip;
        self.force(Info::fault(libc::SIGBUS, 2, at));
    }

    /// Sends this thread a signal that cannot be put off: where it is blocked or ignored the process ends.
    fn force(&mut self, info: Info) {
        // A handler whose frame is bad returns nowhere.
        self.returning = None;
        let mut table = lock(&self.kernel.table);
        let Ok(process) = table.process(self.pid) else { return };
        let ignored = process.actions[usize::from(info.signal)].handler == 1;
        if let Some(thread) = process.threads.get_mut(&self.tid) {
            if ignored || thread.blocked.has(info.signal) {
                process.actions[usize::from(info.signal)] = signal::Action::default();
                thread.blocked.0 &= !signal::Set::one(info.signal).0;
            }
            thread.pending.push_front(info);
            self.handle.flag.set();
        }
    }

    /// The open file behind a descriptor.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>> {
        lock(&self.descriptors).get(number)
    }

    /// Who the process is.
    pub fn credentials(&self) -> Result<Arc<Credentials>> {
        lock(&self.kernel.table).process(self.pid).map(|process| process.credentials.clone())
    }

    /// The flag that ends calls of the host when this thread has something to look at.
    pub fn flag(&self) -> &Flag {
        &self.handle.flag
    }
}
