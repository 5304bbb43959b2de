//! Signals: sets, actions, and the frame a handler finds on its stack (System V ABI; Linux's `struct rt_sigframe`).

use kvm_bindings::kvm_regs;

use super::Task;
use super::table::Status;
use crate::process::Result;
use crate::process::plain::{half, word};
use crate::process::vm::vcpu::ExtendedState;
use crate::process::vm::{layout, lock};

/// A set of signals, as the kernel's `sigset_t`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Set(pub u64);

impl Set {
    /// The set of one signal.
    pub fn one(signal: u8) -> Self {
        Self(1 << (signal - 1))
    }

    /// Whether a signal is in it.
    pub fn has(self, signal: u8) -> bool {
        self.0 >> (signal - 1) & 1 != 0
    }

    /// Without what cannot be blocked.
    #[must_use]
    pub fn blockable(self) -> Self {
        Self(self.0 & !(Self::one(libc::SIGKILL as u8).0 | Self::one(libc::SIGSTOP as u8).0))
    }
}

/// A signal and what is said with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub signal: u8,
    /// `si_code`.
    pub code: i32,
    /// The three words after the head: sender or address, value, status.
    pub fields: [u64; 3],
}

impl Info {
    /// Sent by the kernel itself.
    pub fn kernel(signal: i32) -> Self {
        Self { signal: signal as u8, code: 0x80, fields: [0; 3] }
    }

    /// Sent by a process, by kill or tgkill.
    pub fn from_process(signal: u8, code: i32, pid: i32, user: u32) -> Self {
        Self { signal, code, fields: [u64::from(pid as u32) | u64::from(user) << 32, 0, 0] }
    }

    /// A fault at an address.
    pub fn fault(signal: i32, code: i32, address: u64) -> Self {
        Self { signal: signal as u8, code, fields: [address, 0, 0] }
    }

    /// As `siginfo_t`.
    pub fn bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes[..4].copy_from_slice(&u32::from(self.signal).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.code.to_le_bytes());
        for (at, field) in self.fields.iter().enumerate() {
            bytes[16 + at * 8..24 + at * 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// From a `siginfo_t` of the guest.
    pub fn from_bytes(signal: u8, bytes: &[u8; 128]) -> Self {
        let word = |at| word(bytes, at);
        let code = half(bytes, 8).cast_signed();
        Self { signal, code, fields: [word(16), word(24), word(32)] }
    }
}

/// What a signal does in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing.
    Ignore,
    /// Ends the process.
    End,
    /// Stops the process.
    Stop,
    /// Lets a stopped process go on.
    Continue,
    /// Calls a handler.
    Handle,
}

impl Disposition {
    /// What a signal does by default (signal(7)).
    pub fn of_default(signal: u8) -> Self {
        match i32::from(signal) {
            libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH => Self::Ignore,
            libc::SIGCONT => Self::Continue,
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Self::Stop,
            _ => Self::End,
        }
    }
}

/// What a process has set a signal to do: the kernel's `struct sigaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Action {
    /// The handler; 0 for the default, 1 to ignore.
    pub handler: u64,
    /// `SA_` flags.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// What is blocked while the handler runs.
    pub mask: Set,
}

impl Action {
    /// What the signal does.
    pub fn disposition(&self, signal: u8) -> Disposition {
        match self.handler {
            0 => Disposition::of_default(signal),
            1 => Disposition::Ignore,
            _ => Disposition::Handle,
        }
    }

    fn has(&self, flag: i32) -> bool {
        self.flags & u64::from(flag.cast_unsigned()) != 0
    }
}

/// The stack for handlers that a thread has set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlternateStack {
    /// Its lowest address.
    pub start: u64,
    /// Its size; 0 where there is none.
    pub size: u64,
}

impl AlternateStack {
    fn holds(&self, pointer: u64) -> bool {
        pointer > self.start && pointer - self.start <= self.size
    }
}

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    Run,
    /// Ends, without a word.
    End,
}

/// Bytes of the frame: the return address, `struct ucontext`, `siginfo_t`.
const FRAME: u64 = 8 + CONTEXT + 128;
const CONTEXT: u64 = 304;
/// Where the parts stand in `struct ucontext`.
const MACHINE: usize = 40;
const MASK: usize = 296;
const FLOATING_POINT: usize = MACHINE + 184;
const UC_FLAGS: u64 = 1 | 2 | 4;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// Where XSAVE leaves room for what software says of the area.
const SOFTWARE: usize = 464;
const RED_ZONE: u64 = 128;

/// How much of its stack a signal takes at most before its handler begins.
pub fn most_frame_bytes() -> u64 {
    RED_ZONE + ExtendedState::get().bytes as u64 + 4 + 63 + FRAME + 15 + 8
}

/// The general registers in the order of `struct sigcontext`.
fn ordered(registers: &mut kvm_regs) -> [&mut u64; 18] {
    let r = registers;
    [
        &mut r.r8,
        &mut r.r9,
        &mut r.r10,
        &mut r.r11,
        &mut r.r12,
        &mut r.r13,
        &mut r.r14,
        &mut r.r15,
        &mut r.rdi,
        &mut r.rsi,
        &mut r.rbp,
        &mut r.rbx,
        &mut r.rdx,
        &mut r.rax,
        &mut r.rcx,
        &mut r.rsp,
        &mut r.rip,
        &mut r.rflags,
    ]
}

impl Task {
    /// Looks at the table: ends, stops, or delivers signals. Called before ring 3 is entered when the flag is set.
    pub fn look(&mut self) -> Next {
        loop {
            if self.handle.flag.take() {
                self.handle.kick.set(false);
            }
            let kernel = self.kernel.clone();
            let seen = kernel.changed.now();
            let mut table = lock(&kernel.table);
            let Some(process) = table.processes.get_mut(&self.pid) else { return Next::End };
            if process.ending.is_some() || process.sole.is_some_and(|sole| sole != self.tid) {
                return Next::End;
            }
            let Some(thread) = process.threads.get(&self.tid).filter(|thread| !thread.ending) else { return Next::End };
            let blocked = thread.blocked;
            if process.stopped.is_some() {
                drop(table);
                let _ = kernel.changed.wait(&self.handle.flag, seen, None);
                continue;
            }
            if self.returning.is_some() {
                return Next::Run;
            }
            let Some(info) = process.take(self.tid, |signal| !blocked.has(signal)) else {
                let Some(thread) = process.threads.get_mut(&self.tid) else { return Next::End };
                if let Some(restore) = thread.restore.take() {
                    thread.blocked = restore;
                    continue;
                }
                drop(table);
                // A call that nobody handled a signal for begins again.
                self.restart(true);
                return Next::Run;
            };
            let action = process.actions[usize::from(info.signal)];
            match action.disposition(info.signal) {
                Disposition::Ignore | Disposition::Continue => {}
                Disposition::Stop => {
                    process.stopped = Some(info.signal);
                    process.news = Some(u32::from(info.signal) << 8 | 0x7f);
                    let parent = process.parent;
                    process.interrupt_all();
                    table.send(parent, Info { code: libc::CLD_STOPPED, ..Info::kernel(libc::SIGCHLD) });
                    kernel.changed.notify();
                }
                Disposition::End => {
                    drop(table);
                    self.end_process(Status::Killed(info.signal));
                    return Next::End;
                }
                Disposition::Handle => {
                    let Some(thread) = process.threads.get_mut(&self.tid) else { return Next::End };
                    let old = thread.restore.take().unwrap_or(blocked);
                    let mut mask = Set(old.0 | blocked.0 | action.mask.0);
                    if !action.has(libc::SA_NODEFER) {
                        mask.0 |= Set::one(info.signal).0;
                    }
                    thread.blocked = mask.blockable();
                    if action.has(libc::SA_RESETHAND) {
                        process.actions[usize::from(info.signal)] = Action::default();
                    }
                    drop(table);
                    self.restart(action.has(libc::SA_RESTART));
                    if self.enter_handler(&info, &action, old).is_err() {
                        // No stack to put the frame on.
                        self.end_process(Status::Killed(libc::SIGSEGV as u8));
                        return Next::End;
                    }
                }
            }
        }
    }

    /// Makes an interrupted call begin again, if it is one that does.
    fn restart(&mut self, again: bool) {
        if let Some(number) = self.interrupted.take()
            && again
        {
            let registers = self.vcpu.registers();
            registers.rax = number;
            // `syscall` is two bytes long.
            registers.rip = registers.rip.wrapping_sub(2);
        }
    }

    /// Puts the frame on the stack and goes to the handler.
    fn enter_handler(&mut self, info: &Info, action: &Action, mask: Set) -> Result<()> {
        let mut registers = *self.vcpu.registers();
        let alternate = self.alternate_stack;
        let switch = action.has(libc::SA_ONSTACK) && alternate.size > 0 && !alternate.holds(registers.rsp);
        let top = if switch { alternate.start + alternate.size } else { registers.rsp.wrapping_sub(RED_ZONE) };
        let extended = ExtendedState::get();
        let floating = top.wrapping_sub(extended.bytes as u64 + 4) & !63;
        let frame = (floating.wrapping_sub(FRAME) & !15).wrapping_sub(8);

        // The stub fills in what is not here.
        let mut state = vec![0; extended.bytes];
        let mut put = |at: usize, bytes: &[u8]| state[at..at + bytes.len()].copy_from_slice(bytes);
        put(SOFTWARE, &MAGIC_1.to_le_bytes());
        put(SOFTWARE + 4, &(extended.bytes as u32 + 4).to_le_bytes());
        put(SOFTWARE + 8, &extended.components.to_le_bytes());
        put(SOFTWARE + 16, &(extended.bytes as u32).to_le_bytes());
        state.extend_from_slice(&MAGIC_2.to_le_bytes());

        let mut context = [0; CONTEXT as usize];
        let mut put = |at: usize, word: u64| context[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(0, UC_FLAGS);
        put(16, alternate.start);
        put(24, if alternate.size == 0 { libc::SS_DISABLE as u64 } else { 0 });
        put(32, alternate.size);
        for (at, register) in ordered(&mut registers).into_iter().enumerate() {
            put(MACHINE + at * 8, *register);
        }
        put(MACHINE + 144, 0x33 | 0x2b << 48);
        put(MACHINE + 168, mask.0);
        put(MACHINE + 176, info.fields[0]);
        put(FLOATING_POINT, floating);
        put(MASK, mask.0);

        let mut bytes = action.restorer.to_le_bytes().to_vec();
        bytes.extend_from_slice(&context);
        bytes.extend_from_slice(&info.bytes());
        let mut memory = lock(&self.memory);
        memory.write(floating, &state)?;
        memory.write(frame, &bytes)?;
        drop(memory);
        let registers = self.vcpu.registers();
        (registers.rdi, registers.rsi) = (u64::from(info.signal), frame + 8 + CONTEXT);
        (registers.r8, registers.r9, registers.r10) = (floating, frame + 8, action.handler);
        (registers.rip, registers.rsp) = (layout::SAVE, frame);
        registers.rflags &= !0x400;
        Ok(())
    }

    /// Goes back to where a handler was entered from: `rt_sigreturn(2)`.
    pub fn leave_handler(&mut self) -> Result<()> {
        let at = self.vcpu.registers().rsp;
        let mut memory = lock(&self.memory);
        let context: [u8; CONTEXT as usize] = memory.array(at)?;
        let word = |at| word(&context, at);
        let floating = word(FLOATING_POINT);
        drop(memory);
        let mut registers = *self.vcpu.registers();
        let flags = registers.rflags;
        for (at, register) in ordered(&mut registers).into_iter().enumerate() {
            *register = word(MACHINE + at * 8);
        }
        // The arithmetic flags, DF, TF not, AC, ID: the rest is not a program's to set.
        registers.rflags = registers.rflags & 0x24_0cd5 | flags & !0x24_0cd5;
        if floating == 0 {
            *self.vcpu.registers() = registers;
        } else {
            self.returning = Some(registers);
            let registers = self.vcpu.registers();
            (registers.r8, registers.rip) = (floating, layout::RESTORE);
        }
        let mut table = lock(&self.kernel.table);
        if let Some(thread) = table.process(self.pid)?.threads.get_mut(&self.tid) {
            thread.blocked = Set(word(MASK)).blockable();
        }
        self.handle.flag.set();
        Ok(())
    }

    /// Goes on where the handler was entered from, now that the vector registers are those of then.
    pub fn restored(&mut self) {
        match self.returning.take() {
            Some(registers) => *self.vcpu.registers() = registers,
            // A program has jumped there.
            None => self.other_fault(None),
        }
        // What came meanwhile was put off.
        self.handle.flag.set();
    }
}
