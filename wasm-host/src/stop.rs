//! What ends a module from outside: a signal, or its time.
//!
//! The signal handler notes why, advances the engine's epoch, which ends code that computes, and writes to a pipe,
//! which ends code that waits. What neither can end in time, a system call that blocks, goes with the process.

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use wasmtime::Engine;

use crate::error::{Error, Result};

/// Signals that end a module. All others end it as the kernel sees fit.
const SIGNALS: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGALRM];
/// How long a module that was told to end may take to notice.
const PATIENCE: Duration = Duration::from_millis(20);
/// What timeout(1) ends with.
const TIMED_OUT: i32 = 124;

/// The signal that came first; 0: none.
static REASON: AtomicI32 = AtomicI32::new(0);
static TARGET: OnceLock<Target> = OnceLock::new();

/// What a signal reaches.
struct Target {
    engine: Engine,
    bell: PipeWriter,
    /// What is said when the time is over.
    farewell: String,
}

/// Handles the signals from now on, and the end of `time`. Once in a process. [`stopped`] takes the result.
pub fn watch(engine: &Engine, time: Option<Duration>) -> Result<PipeReader> {
    let (reader, bell) = pipe().map_err(Error::io("make a pipe for signals"))?;
    let farewell = time.map(|time| format!("berth-wasm: the module was ended after {time:?}, the time it had\n"));
    let target = Target { engine: engine.clone(), bell, farewell: farewell.unwrap_or_default() };
    if TARGET.set(target).is_err() {
        return Err(Error::Handover("this process runs a module already".to_owned()));
    }
    for signal in SIGNALS {
        // SAFETY: the handler does only what is allowed in one: atomic operations and system calls.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if result != 0 {
            return Err(Error::io("handle signals")(std::io::Error::last_os_error()));
        }
    }
    if let Some(time) = time {
        alarm_in(time);
    }
    Ok(reader)
}

/// Waits for a signal.
pub async fn stopped(signals: PipeReader) -> Result<()> {
    let mut signals = Receiver::from_owned_fd(signals.into()).map_err(Error::io("wait for signals"))?;
    signals.read_u8().await.map(drop).map_err(Error::io("wait for signals"))
}

/// What the process ends with, if a signal ended the module.
pub fn exit_code() -> Option<i32> {
    match REASON.load(Ordering::Acquire) {
        0 => None,
        libc::SIGALRM => Some(TIMED_OUT),
        signal => Some(128 + signal),
    }
}

extern "C" fn handle(signal: libc::c_int) {
    if REASON.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire).is_err() {
        if signal == libc::SIGALRM {
            // SAFETY: ends the process; nothing of it runs on.
            unsafe { libc::_exit(exit_code().unwrap_or(TIMED_OUT)) }
        }
        return;
    }
    if let Some(target) = TARGET.get() {
        if signal == libc::SIGALRM {
            // SAFETY: the bytes live as long as the process does.
            unsafe { libc::write(libc::STDERR_FILENO, target.farewell.as_ptr().cast(), target.farewell.len()) };
        }
        target.engine.increment_epoch();
        // SAFETY: the descriptor is open as long as the process lives, and one byte is there.
        unsafe { libc::write(target.bell.as_raw_fd(), c"!".as_ptr().cast(), 1) };
    }
    alarm_in(PATIENCE);
}

/// Lets `SIGALRM` come once. Safe in a signal handler: nothing but a system call.
fn alarm_in(time: Duration) {
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            // All zero would mean never.
            tv_usec: time.subsec_micros().max(u32::from(time.as_secs() == 0)).into(),
        },
    };
    // SAFETY: the pointer is to a value that lives through the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
