//! Clocks and sleeping.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::host::{self, Arg};
use super::{Arguments, files};
use crate::process::Result;
use crate::process::plain::word;
use crate::process::task::Task;
use crate::process::task::gate::Event;
use crate::process::vm::clock::now;
use crate::process::vm::lock;

/// A moment until which a call waits.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: libc::timespec,
    clock: libc::clockid_t,
}

impl Deadline {
    /// From a timeout, or a time of the clock.
    pub fn new(time: libc::timespec, absolute: bool, realtime: bool) -> Self {
        let clock = if realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
        if absolute {
            return Self { at: time, clock };
        }
        let now = now(clock);
        let nanoseconds = now.tv_nsec + time.tv_nsec;
        let seconds = now.tv_sec.saturating_add(time.tv_sec).saturating_add(nanoseconds / 1_000_000_000);
        Self { at: libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds % 1_000_000_000 }, clock }
    }

    /// What is left until then; nothing if it has passed.
    pub fn left(&self) -> libc::timespec {
        let now = now(self.clock);
        let (mut seconds, mut nanoseconds) = (self.at.tv_sec.saturating_sub(now.tv_sec), self.at.tv_nsec - now.tv_nsec);
        if nanoseconds < 0 {
            (seconds, nanoseconds) = (seconds - 1, nanoseconds + 1_000_000_000);
        }
        if seconds < 0 {
            (seconds, nanoseconds) = (0, 0);
        }
        libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }
    }
}

/// Reads a `struct timespec`.
///
/// # Errors
/// `EINVAL` where it is no time.
pub fn timespec(task: &Task, address: u64) -> Result<libc::timespec> {
    let bytes: [u8; 16] = lock(&task.memory).array(address)?;
    let word = |at| word(&bytes, at).cast_signed();
    let time = libc::timespec { tv_sec: word(0), tv_nsec: word(8) };
    if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) {
        return Err(Errno::EINVAL);
    }
    Ok(time)
}

/// A time as it stands in memory.
pub fn bytes(time: libc::timespec) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.tv_sec.to_le_bytes());
    bytes[8..].copy_from_slice(&time.tv_nsec.to_le_bytes());
    bytes
}

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    let write = |address: u64, bytes: &[u8]| lock(&task.memory).write(address, bytes).map(|()| 0);
    Some(match number {
        libc::SYS_clock_gettime | libc::SYS_clock_getres => {
            let mut time = [0; 16];
            // Only clocks of the system: a clock of a process would be the VMM's.
            if (a[0] as i32).is_negative() {
                return Some(Err(Errno::EINVAL));
            }
            let out = if number == libc::SYS_clock_getres && a[1] == 0 { Arg::Word(0) } else { Arg::from(&mut time) };
            let done = host::call(number, [a[0].into(), out]);
            // Whoever asks here found the page too old.
            if let Some(clock) = &task.kernel.vm.clock {
                clock.renew();
            }
            done.and_then(|_| if a[1] == 0 { Ok(0) } else { write(a[1], &time) })
        }
        libc::SYS_gettimeofday => {
            let mut time = now(libc::CLOCK_REALTIME);
            time.tv_nsec /= 1000;
            if a[0] == 0 { Ok(0) } else { write(a[0], &bytes(time)) }
        }
        libc::SYS_time => {
            let seconds = now(libc::CLOCK_REALTIME).tv_sec;
            let written = if a[0] == 0 { Ok(0) } else { write(a[0], &seconds.to_le_bytes()) };
            written.map(|_| seconds.cast_unsigned())
        }
        libc::SYS_nanosleep => {
            timespec(task, a[0]).and_then(|time| sleep(task, Deadline::new(time, false, false), a[1]))
        }
        libc::SYS_clock_nanosleep => timespec(task, a[2]).and_then(|time| {
            let absolute = a[1] & libc::TIMER_ABSTIME as u64 != 0;
            let realtime = a[0] as i32 == libc::CLOCK_REALTIME;
            sleep(task, Deadline::new(time, absolute, realtime), if absolute { 0 } else { a[3] })
        }),
        libc::SYS_timerfd_create => host::call(number, [a[0].into(), (a[1] | libc::TFD_CLOEXEC as u64).into()])
            .and_then(|fd| files::adopt(task, fd, "anon_inode:[timerfd]", a[1] & libc::TFD_CLOEXEC as u64 != 0)),
        libc::SYS_timerfd_settime => task.file(a[0]).and_then(|file| {
            let new: [u8; 32] = lock(&task.memory).array(a[2])?;
            let mut old = [0; 32];
            host::call(number, [file.as_raw_fd().into(), a[1].into(), Arg::In(&new), Arg::from(&mut old)])?;
            if a[3] == 0 { Ok(0) } else { write(a[3], &old) }
        }),
        libc::SYS_timerfd_gettime => task.file(a[0]).and_then(|file| {
            let mut now = [0; 32];
            host::call(number, [file.as_raw_fd().into(), Arg::from(&mut now)])?;
            write(a[1], &now)
        }),
        _ => return None,
    })
}

fn sleep(task: &Task, deadline: Deadline, left: u64) -> Result {
    let nothing = Event::default();
    loop {
        match nothing.wait(task.flag(), 0, Some(&deadline.left())) {
            Err(Errno::ETIMEDOUT) => return Ok(0),
            Err(error) => {
                if left != 0 {
                    lock(&task.memory).write(left, &bytes(deadline.left()))?;
                }
                return Err(error);
            }
            Ok(()) => {}
        }
    }
}
