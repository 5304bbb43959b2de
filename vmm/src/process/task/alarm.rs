//! Interval timers: one host thread for all of them, begun with the first.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Kernel;
use super::signal::Info;
use crate::process::vm::lock;

/// A process's timer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timer {
    at: Option<Instant>,
    /// How often it goes off after the first time; zero for once.
    pub interval: Duration,
}

impl Timer {
    /// A timer that goes off after `first`, then every `interval`; one that does not for a `first` of zero.
    pub fn new(first: Duration, interval: Duration) -> Self {
        Self { at: (!first.is_zero()).then(|| Instant::now() + first), interval }
    }

    /// A timer that goes off once.
    pub fn once(first: Duration) -> Self {
        Self::new(first, Duration::ZERO)
    }

    /// What is left until it goes off; zero where it does not.
    pub fn left(&self) -> Duration {
        self.at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)))
    }
}

/// The timers of all processes.
#[derive(Debug, Default)]
pub struct Alarms {
    timers: Mutex<(BTreeMap<i32, Timer>, bool)>,
    changed: Condvar,
}

impl Alarms {
    /// The timer of a process.
    pub fn get(&self, pid: i32) -> Timer {
        lock(&self.timers).0.get(&pid).copied().unwrap_or_default()
    }

    /// Sets the timer of a process and gives the one before.
    pub fn set(&self, kernel: &Arc<Kernel>, pid: i32, timer: Timer) -> Timer {
        let mut timers = lock(&self.timers);
        let before = match timer.at {
            Some(_) => timers.0.insert(pid, timer),
            None => timers.0.remove(&pid),
        };
        if timer.at.is_some() && !timers.1 {
            let kernel = kernel.clone();
            // Without a thread no timer goes off; the next one set tries again.
            timers.1 =
                std::thread::Builder::new().stack_size(64 << 10).spawn(move || kernel.alarms.ring(&kernel)).is_ok();
        }
        self.changed.notify_one();
        before.unwrap_or_default()
    }

    /// Sends the signals, for ever.
    fn ring(&self, kernel: &Kernel) {
        let mut timers = lock(&self.timers);
        loop {
            let now = Instant::now();
            let mut due = Vec::new();
            timers.0.retain(|&pid, timer| {
                let Some(at) = timer.at.filter(|&at| at <= now) else { return true };
                due.push(pid);
                timer.at = Some((at + timer.interval).max(now));
                !timer.interval.is_zero()
            });
            if !due.is_empty() {
                // The table is locked without the timers: who holds it may set one.
                drop(timers);
                let mut table = lock(&kernel.table);
                for pid in due {
                    table.send(pid, Info::kernel(libc::SIGALRM));
                }
                drop(table);
                timers = lock(&self.timers);
                continue;
            }
            let next = timers.0.values().filter_map(|timer| timer.at).min();
            timers = match next {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    self.changed.wait_timeout(timers, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(timers).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
