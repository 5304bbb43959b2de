//! Timers that send signals: interval timers and those of `timer_create(2)`. One host thread for all, begun with the first.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Kernel;
use super::signal::Info;
use super::table::Table;
use crate::process::vm::lock;

/// How often a timer of processor time is looked at: it goes off when the process has used it, however long that takes.
const LOOK: Duration = Duration::from_millis(1);

/// What a timer measures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Clock {
    /// Time since the guest began.
    #[default]
    Wall,
    /// The same, for a timer whose absolute times are those of the calendar.
    Calendar,
    /// Processor time of the process.
    Processor,
}

impl Clock {
    /// What it says for a process.
    pub fn now(self, kernel: &Kernel, table: &Table, pid: i32) -> Duration {
        match self {
            Self::Wall | Self::Calendar => kernel.started.elapsed(),
            Self::Processor => table.processes.get(&pid).map_or(Duration::ZERO, super::table::Process::processor_time),
        }
    }
}

/// Which timer of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// One of setitimer(2): `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    Interval(u8),
    /// One of `timer_create(2)`.
    Created(i32),
}

/// A timer.
#[derive(Debug, Clone, Copy)]
pub struct Timer {
    /// What it measures.
    pub clock: Clock,
    /// When it goes off; never where it is not set.
    pub at: Option<Duration>,
    /// How often it goes off after the first time; zero for once.
    pub interval: Duration,
    /// What is sent; nothing for a timer that is only asked.
    pub info: Option<Info>,
    /// Which thread gets it, if not any.
    pub thread: Option<i32>,
    /// How many periods went by unnoticed before the last signal.
    pub overrun: u32,
}

impl Timer {
    /// A timer that is not set.
    pub fn new(clock: Clock, info: Option<Info>, thread: Option<i32>) -> Self {
        Self { clock, at: None, interval: Duration::ZERO, info, thread, overrun: 0 }
    }

    /// What is left at `now` until it goes off; zero where it does not.
    pub fn left(&self, now: Duration) -> Duration {
        self.at.map_or(Duration::ZERO, |at| at.saturating_sub(now).max(Duration::from_nanos(1)))
    }

    /// Whether it goes off by `now`; if so it is set for the next time.
    fn goes_off(&mut self, now: Duration) -> bool {
        let Some(at) = self.at.filter(|&at| at <= now) else { return false };
        if self.interval.is_zero() {
            self.at = None;
        } else {
            let missed = now.saturating_sub(at).as_nanos() / self.interval.as_nanos();
            self.overrun = u32::try_from(missed).unwrap_or(u32::MAX);
            self.at = Some(at + self.interval.saturating_mul(self.overrun.saturating_add(1)));
        }
        true
    }

    /// Sends its signal. One waits at most: those in between are counted, after the ones missed before.
    fn send(&mut self, table: &mut Table, pid: i32, before: u32) {
        let Some(info) = self.info else { return };
        if table.processes.get(&pid).is_some_and(|process| process.has_pending(&info)) {
            self.overrun = self.overrun.saturating_add(before).saturating_add(1);
        } else if let Some(thread) = self.thread {
            // A thread that is gone gets none.
            let _ = table.send_to_thread(pid, thread, info);
        } else {
            table.send(pid, info);
        }
    }
}

/// The timers of all processes.
#[derive(Debug, Default)]
pub struct Alarms {
    timers: Mutex<Timers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Timers {
    all: BTreeMap<(i32, Name), Timer>,
    has_thread: bool,
}

impl Alarms {
    /// A timer of a process.
    pub fn get(&self, pid: i32, name: Name) -> Option<Timer> {
        lock(&self.timers).all.get(&(pid, name)).copied()
    }

    /// Adds a timer under a number that none of the process has, up to `most` of them.
    pub fn add(&self, pid: i32, most: i32, timer: impl FnOnce(i32) -> Timer) -> Option<i32> {
        let mut timers = lock(&self.timers);
        let id = (0..most).find(|&id| !timers.all.contains_key(&(pid, Name::Created(id))))?;
        timers.all.insert((pid, Name::Created(id)), timer(id));
        Some(id)
    }

    /// Sets a timer.
    pub fn set(&self, kernel: &Arc<Kernel>, pid: i32, name: Name, timer: Timer) {
        let mut timers = lock(&self.timers);
        timers.all.insert((pid, name), timer);
        if timer.at.is_some() && !timers.has_thread {
            let kernel = kernel.clone();
            let ring = move || kernel.alarms.ring(&kernel);
            // Without a thread no timer goes off; the next one set tries again.
            timers.has_thread = std::thread::Builder::new().stack_size(64 << 10).spawn(ring).is_ok();
        }
        self.changed.notify_one();
    }

    /// Removes a timer; whether there was one.
    pub fn remove(&self, pid: i32, name: Name) -> bool {
        lock(&self.timers).all.remove(&(pid, name)).is_some()
    }

    /// Removes those timers of a process that `timer_create` made, as execve does; with `all` the others too.
    pub fn forget(&self, pid: i32, all: bool) {
        lock(&self.timers).all.retain(|(owner, name), _| *owner != pid || !(all || matches!(name, Name::Created(_))));
    }

    /// Sends the signals, for ever. The table is locked before the timers.
    fn ring(&self, kernel: &Kernel) {
        loop {
            let mut table = lock(&kernel.table);
            let mut timers = lock(&self.timers);
            let mut wait = None;
            for (&(pid, _), timer) in &mut timers.all {
                let now = timer.clock.now(kernel, &table, pid);
                let before = timer.overrun;
                if timer.goes_off(now) {
                    timer.send(&mut table, pid, before);
                }
                if timer.at.is_some() {
                    let left = timer.left(now);
                    let left = if timer.clock == Clock::Processor { left.max(LOOK) } else { left };
                    wait = Some(wait.map_or(left, |other: Duration| other.min(left)));
                }
            }
            drop(table);
            // The guard is given back at once: the table is locked first.
            drop(match wait {
                Some(wait) => self.changed.wait_timeout(timers, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(timers).unwrap_or_else(PoisonError::into_inner),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_late_counts_what_it_missed() {
        let second = Duration::from_secs(1);
        let timer = Timer::new(Clock::Wall, None, None);
        let mut timer = Timer { at: Some(second), interval: second, ..timer };
        assert!(!timer.goes_off(second / 2));
        assert!(timer.goes_off(second * 7 / 2));
        assert_eq!((timer.overrun, timer.at), (2, Some(second * 4)));
        assert_eq!(timer.left(second * 3), second);
    }
}
