//! Timers that send signals: alarm, setitimer, `timer_create`.

use std::time::Duration;

use nix::errno::Errno;

use super::Arguments;
use super::signals::{SI_TIMER, number};
use crate::process::Result;
use crate::process::plain::{half, word};
use crate::process::task::Task;
use crate::process::task::alarm::{Clock, Name, Timer};
use crate::process::task::signal::Info;
use crate::process::vm::clock::now;
use crate::process::vm::lock;

/// Most timers of one process.
const MOST_TIMERS: i32 = 1024;
/// Bytes of `struct sigevent`.
const EVENT: usize = 64;
/// The signals of the interval timers.
const SIGNALS: [i32; 3] = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF];
/// The longest time that is told apart from never.
const LONGEST: u64 = 1 << 32;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    Some(match number {
        libc::SYS_alarm => {
            let first = Duration::from_secs(a[0] & 0xffff_ffff);
            let before = set(task, Name::Interval(0), interval(0), first, Duration::ZERO).1;
            Ok(before.as_secs() + u64::from(before.subsec_nanos() > 0))
        }
        libc::SYS_getitimer => interval_timer(task, a[0], 0, a[1]),
        libc::SYS_setitimer => interval_timer(task, a[0], a[1], a[2]),
        libc::SYS_timer_create => create(task, a[0], a[1], a[2]),
        libc::SYS_timer_settime => set_created(task, a),
        libc::SYS_timer_gettime => created(task, a[0]).and_then(|(_, timer)| {
            let left = timer.left(task.time(timer.clock));
            write(task, a[1], [timer.interval, left], Duration::subsec_nanos)
        }),
        libc::SYS_timer_getoverrun => created(task, a[0]).map(|(_, timer)| timer.overrun.into()),
        libc::SYS_timer_delete => {
            let gone = task.kernel.alarms.remove(task.pid, Name::Created(a[0] as i32));
            if gone { Ok(0) } else { Err(Errno::EINVAL) }
        }
        _ => return None,
    })
}

/// An interval timer that is not set.
fn interval(which: usize) -> Timer {
    let clock = if which == 0 { Clock::Wall } else { Clock::Processor };
    Timer::new(clock, Some(Info::kernel(SIGNALS[which])), None)
}

/// Sets a timer to go off `first` from now, never for zero. Gives what it was: period and time left.
fn set(task: &Task, name: Name, timer: Timer, first: Duration, period: Duration) -> (Duration, Duration) {
    let now = task.time(timer.clock);
    let before = task.kernel.alarms.get(task.pid, name).unwrap_or(timer);
    let at = (!first.is_zero()).then(|| now + first);
    task.kernel.alarms.set(&task.kernel, task.pid, name, Timer { at, interval: period, overrun: 0, ..timer });
    (before.interval, before.left(now))
}

fn interval_timer(task: &Task, which: u64, new: u64, old: u64) -> Result {
    let which = usize::try_from(which).ok().filter(|&which| which < SIGNALS.len()).ok_or(Errno::EINVAL)?;
    let name = Name::Interval(which as u8);
    let (period, left) = if new == 0 {
        let timer = task.kernel.alarms.get(task.pid, name).unwrap_or(interval(which));
        (timer.interval, timer.left(task.time(timer.clock)))
    } else {
        let [period, first] = read(task, new, 1_000_000)?;
        set(task, name, interval(which), first, period)
    };
    if old == 0 { Ok(0) } else { write(task, old, [period, left], Duration::subsec_micros) }
}

fn create(task: &Task, clock: u64, event: u64, to: u64) -> Result {
    let clock = match clock as i32 {
        libc::CLOCK_REALTIME => Clock::Calendar,
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => Clock::Wall,
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => Clock::Processor,
        _ => return Err(Errno::EINVAL),
    };
    let event: Option<[u8; EVENT]> = if event == 0 { None } else { Some(lock(&task.memory).array(event)?) };
    let (signal, value, how, thread) = event.map_or((libc::SIGALRM as u64, None, libc::SIGEV_SIGNAL, 0), |bytes| {
        let half = |at| half(&bytes, at);
        (half(8).into(), Some(word(&bytes, 0)), half(12).cast_signed(), half(16).cast_signed())
    });
    let (signal, thread) = match how {
        libc::SIGEV_NONE => (None, None),
        libc::SIGEV_SIGNAL => (Some(number(signal)?), None),
        libc::SIGEV_THREAD_ID => {
            let known = lock(&task.kernel.table).process(task.pid)?.threads.contains_key(&thread);
            (Some(number(signal)?), Some(known.then_some(thread).ok_or(Errno::EINVAL)?))
        }
        _ => return Err(Errno::EINVAL),
    };
    let timer = |id: i32| {
        let fields = [u64::from(id.cast_unsigned()), value.unwrap_or(id as u64), 0];
        Timer::new(clock, signal.map(|signal| Info { signal, code: SI_TIMER, fields }), thread)
    };
    let id = task.kernel.alarms.add(task.pid, MOST_TIMERS, timer).ok_or(Errno::EAGAIN)?;
    lock(&task.memory).write(to, &id.to_le_bytes()).map(|()| 0)
}

fn created(task: &Task, id: u64) -> Result<(Name, Timer)> {
    let name = Name::Created(id as i32);
    task.kernel.alarms.get(task.pid, name).map(|timer| (name, timer)).ok_or(Errno::EINVAL)
}

fn set_created(task: &Task, [id, flags, new, old, ..]: Arguments) -> Result {
    let (name, timer) = created(task, id)?;
    let [period, mut first] = read(task, new, 1_000_000_000)?;
    if flags & libc::TIMER_ABSTIME as u64 != 0 && !first.is_zero() {
        let host = |clock| {
            let is = now(clock);
            Duration::new(is.tv_sec as u64, is.tv_nsec as u32)
        };
        let is = match timer.clock {
            Clock::Wall => host(libc::CLOCK_MONOTONIC),
            Clock::Calendar => host(libc::CLOCK_REALTIME),
            Clock::Processor => task.time(Clock::Processor),
        };
        // One that has passed goes off at once.
        first = first.saturating_sub(is).max(Duration::from_nanos(1));
    }
    let before = set(task, name, timer, first, period);
    if old == 0 { Ok(0) } else { write(task, old, before.into(), Duration::subsec_nanos) }
}

/// Reads period and time of an `itimerval` or `itimerspec`, whose fractions are below `unit`.
fn read(task: &Task, at: u64, unit: u64) -> Result<[Duration; 2]> {
    let bytes: [u8; 32] = lock(&task.memory).array(at)?;
    let time = |at: usize| {
        let (seconds, fraction) = (word(&bytes, at), word(&bytes, at + 8));
        if seconds.cast_signed() < 0 || fraction >= unit {
            return Err(Errno::EINVAL);
        }
        Ok(Duration::new(seconds.min(LONGEST), (fraction * (1_000_000_000 / unit)) as u32))
    };
    Ok([time(0)?, time(16)?])
}

fn write(task: &Task, at: u64, times: [Duration; 2], fraction: fn(&Duration) -> u32) -> Result {
    let words = times.iter().flat_map(|time| [time.as_secs(), u64::from(fraction(time))]);
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    lock(&task.memory).write(at, &bytes).map(|()| 0)
}

impl Task {
    /// What a clock says for this process.
    fn time(&self, clock: Clock) -> Duration {
        clock.now(&self.kernel, &lock(&self.kernel.table), self.pid)
    }
}
