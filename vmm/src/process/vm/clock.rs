//! The page that programs read the time from without leaving ring 3: what the host's clocks said at a moment of the
//! time-stamp counter, and how fast they run by it. The code that reads it is in [`super::vdso`].
//!
//! The page is good for [`VALID`]; a program that finds it older makes the system call, which renews it. So nobody has to
//! wake up for programs that do not ask. The rate is measured between renewals and taken a little low: time never goes
//! back when the page is renewed, and never is ahead of the host's.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::lock;

/// How long the page is good for.
const VALID: Duration = Duration::from_millis(100);
/// Between two measurements of the rate: shorter, and the moment of reading counts too much.
const APART: u64 = Duration::from_millis(20).as_nanos() as u64;
/// What the rate is taken low by, as a fraction of it: 16 per million, more than the error of a measurement.
const LOW: u64 = 1 << 16;
const SECOND: u64 = 1_000_000_000;

/// How many of the clocks there is room for, by their number.
pub const CLOCKS: usize = 8;
/// The seconds of a clock that the page does not have.
pub const NO_CLOCK: u64 = u64::MAX;
/// Those it has: `CLOCK_REALTIME`, `CLOCK_MONOTONIC`, their coarse kin, `CLOCK_BOOTTIME`.
const SERVED: [libc::clockid_t; 5] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_REALTIME_COARSE,
    libc::CLOCK_MONOTONIC_COARSE,
    libc::CLOCK_BOOTTIME,
];

/// The page. Odd while it is written.
#[repr(C)]
#[derive(Debug)]
pub struct Page {
    /// Counts writes.
    pub sequence: AtomicU32,
    /// The counter at the moment.
    pub counter: AtomicU64,
    /// How far the counter may go on before the page is too old.
    pub valid: AtomicU64,
    /// Nanoseconds of one count, times 2³².
    pub rate: AtomicU64,
    /// Seconds and nanoseconds of each clock at the moment.
    pub clocks: [[AtomicU64; 2]; CLOCKS],
}

/// Writes the page.
#[derive(Debug)]
pub struct Clock {
    page: *const Page,
    /// From when on the rate is measured, and the rate once it is known.
    measured: Mutex<(Moment, u64)>,
}

// SAFETY: the page stays where it is, is only accessed atomically, and written with the lock held.
unsafe impl Send for Clock {}
// SAFETY: as above.
unsafe impl Sync for Clock {}

impl Clock {
    /// A clock over a page of zeroes that lives as long as it; `None` where the host does not tell time by the counter.
    pub fn new(page: *mut u8) -> Option<Self> {
        let source = fs::read("/sys/devices/system/clocksource/clocksource0/current_clocksource").ok()?;
        if source.trim_ascii() != b"tsc" {
            return None;
        }
        Some(Self { page: page.cast(), measured: Mutex::new((Moment::now(), 0)) })
    }

    /// Writes the page anew, once it is known how fast the counter runs.
    pub fn renew(&self) {
        let mut measured = lock(&self.measured);
        let moment = Moment::now();
        let (start, rate) = *measured;
        if moment.time() - start.time() >= APART {
            // As many counts as it can have been: the rate is too low rather than too high.
            let counts = moment.after - start.before;
            let exact = ((u128::from(moment.time() - start.time()) << 32) / u128::from(counts)) as u64;
            *measured = (moment, exact - exact / LOW);
        } else if rate == 0 {
            return;
        }
        let rate = measured.1;
        // SAFETY: the page lives as long as the clock, and is only accessed atomically.
        let page = unsafe { &*self.page };
        let sequence = page.sequence.load(Ordering::Relaxed);
        page.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        // What is computed from the later end is behind the clocks, if anything.
        page.counter.store(moment.after, Ordering::Relaxed);
        page.valid.store(((VALID.as_nanos() << 32) / u128::from(rate.max(1))) as u64, Ordering::Relaxed);
        page.rate.store(rate, Ordering::Relaxed);
        for (to, from) in page.clocks.iter().flatten().zip(moment.clocks.into_iter().flatten()) {
            to.store(from, Ordering::Relaxed);
        }
        page.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }
}

/// The clocks at one moment, which is between two counts.
#[derive(Debug, Clone, Copy)]
struct Moment {
    before: u64,
    after: u64,
    clocks: [[u64; 2]; CLOCKS],
}

impl Moment {
    /// The best of a few: whoever is put to sleep in between learns little.
    fn now() -> Self {
        let one = |_| {
            let before = counter();
            let mut clocks = [[NO_CLOCK, 0]; CLOCKS];
            for clock in SERVED {
                let now = now(clock);
                clocks[clock as usize] = [now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned()];
            }
            Self { before, after: counter(), clocks }
        };
        let tries = [0; 3].map(one);
        let [first, rest @ ..] = tries;
        rest.into_iter().fold(first, |best, other| if other.width() < best.width() { other } else { best })
    }

    fn width(&self) -> u64 {
        self.after - self.before
    }

    /// `CLOCK_MONOTONIC` in nanoseconds.
    fn time(&self) -> u64 {
        let [seconds, nanoseconds] = self.clocks[libc::CLOCK_MONOTONIC as usize];
        seconds * SECOND + nanoseconds
    }
}

fn counter() -> u64 {
    // SAFETY: every processor that KVM runs on has these.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// What a clock of the host says.
pub fn now(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is filled by the call.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now
}
