//! Calls of the host that block, and how a guest signal gets a thread out of them.
//!
//! A thread that looks for signals and then enters a call can miss one that arrives in between. So the look and the
//! `syscall` instruction stand together here, and the handler of the host signal that wakes a thread sends it away if it
//! finds it between the two.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::process::Result;

/// The host signal that wakes a thread.
fn wake_signal() -> i32 {
    libc::SIGRTMIN() + 3
}

core::arch::global_asm!(
    ".pushsection .text.berth_gate,\"ax\",@progbits",
    ".globl berth_gate",
    ".globl berth_gate_look",
    ".globl berth_gate_entered",
    ".globl berth_gate_leave",
    // berth_gate(flag, number, arguments)
    "berth_gate:",
    "mov rax, rsi",
    "mov r11, rdi",
    "mov rcx, rdx",
    "mov rdi, [rcx]",
    "mov rsi, [rcx + 8]",
    "mov rdx, [rcx + 16]",
    "mov r10, [rcx + 24]",
    "mov r8, [rcx + 32]",
    "mov r9, [rcx + 40]",
    "berth_gate_look:",
    "cmp dword ptr [r11], 0",
    "jne berth_gate_leave",
    "syscall",
    "berth_gate_entered:",
    "ret",
    "berth_gate_leave:",
    "mov rax, -4",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn berth_gate(flag: *const u32, number: u64, arguments: *const [u64; 6]) -> i64;
    fn berth_gate_look();
    fn berth_gate_entered();
    fn berth_gate_leave();
}

extern "C" fn woken(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a `ucontext_t` to handlers installed with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = &mut registers[libc::REG_RIP as usize];
    if (berth_gate_look as *const () as i64..berth_gate_entered as *const () as i64).contains(at) {
        *at = berth_gate_leave as *const () as i64;
    }
}

/// Says that a thread has something to look at. Set by others, cleared by the thread.
#[derive(Debug, Default)]
pub struct Flag(AtomicU32);

impl Flag {
    /// Sets it.
    pub fn set(&self) {
        self.0.store(1, Ordering::SeqCst);
    }

    /// Clears it and says whether it was set.
    pub fn take(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) != 0
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// Makes a call of the host, unless or until `flag` is set and the thread woken.
///
/// # Errors
/// What the call gives; `EINTR` where it was interrupted.
///
/// # Safety
/// As for the call itself: pointers among the arguments must be valid for it.
pub unsafe fn call(flag: &Flag, number: i64, arguments: [u64; 6]) -> Result {
    // SAFETY: the flag and the arguments live as long as the call; the rest is the caller's promise.
    let result = unsafe { berth_gate(flag.0.as_ptr(), number as u64, &raw const arguments) };
    if (-4095..0).contains(&result) { Err(Errno::from_raw(-result as i32)) } else { Ok(result.cast_unsigned()) }
}

/// Makes a call of the host that does not block.
///
/// # Errors
/// What the call gives.
///
/// # Safety
/// As for the call itself.
pub unsafe fn plain(number: i64, arguments: [u64; 6]) -> Result {
    static NEVER: Flag = Flag(AtomicU32::new(0));
    // SAFETY: the caller's promise.
    unsafe { call(&NEVER, number, arguments) }
}

/// Installs the handler of the signal that wakes threads.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler touches nothing but the interrupted registers.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = woken as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(wake_signal(), &raw const action, std::ptr::null_mut());
        }
    });
}

/// Wakes a host thread of this process.
pub fn wake(host_thread: i32) {
    // SAFETY: a plain system call; a thread that is gone is an error without effect.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), host_thread, wake_signal()) };
}

/// A count that threads wait on for a change.
#[derive(Debug, Default)]
pub struct Event(AtomicU32);

impl Event {
    /// The count now, to be passed to [`wait`](Self::wait).
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Changes the count and wakes who waits.
    pub fn notify(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
        // SAFETY: the futex word lives in this struct.
        let _ = unsafe { plain(libc::SYS_futex, [self.0.as_ptr() as u64, wake, i32::MAX as u64, 0, 0, 0]) };
    }

    /// Waits until the count differs from `seen`, the timeout passes, or the thread is woken with its flag set.
    ///
    /// # Errors
    /// `EINTR` or `ETIMEDOUT`.
    pub fn wait(&self, flag: &Flag, seen: u32, timeout: Option<&libc::timespec>) -> Result<()> {
        let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
        let timeout = timeout.map_or(0, |timeout| std::ptr::from_ref(timeout) as u64);
        // SAFETY: the futex word and the timeout live as long as the call.
        match unsafe { call(flag, libc::SYS_futex, [self.0.as_ptr() as u64, wait, u64::from(seen), timeout, 0, 0]) } {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
