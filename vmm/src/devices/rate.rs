//! Rate limits by token buckets: how many bytes and operations a device does per second.
//!
//! A request is let through while the bucket holds anything at all and may leave it in debt, so one request larger than the
//! bucket is slow, not stuck.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::{Deserialize, Serialize};

const SECOND: u128 = 1_000_000_000;

/// One bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// What flows in each second: bytes or operations.
    pub per_second: NonZeroU64,
    /// What the bucket holds: how much may be done at once after a rest. It starts full.
    pub burst: NonZeroU64,
}

/// The limits of one direction of one device; what is absent is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Requests or packets.
    pub operations: Option<Rate>,
}

/// What a snapshot keeps of a limiter: what is in the buckets, negative for debt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateState {
    /// Bytes.
    pub bytes: Option<i64>,
    /// Requests or packets.
    pub operations: Option<i64>,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    level: i64,
    updated: Instant,
}

impl Bucket {
    fn new(rate: Rate, level: Option<i64>, now: Instant) -> Self {
        let full = i64::try_from(rate.burst.get()).unwrap_or(i64::MAX);
        Self { rate, level: level.map_or(full, |level| level.min(full)), updated: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_nanos();
        let per_second = u128::from(self.rate.per_second.get());
        let gained = elapsed.saturating_mul(per_second) / SECOND;
        let full = i64::try_from(self.rate.burst.get()).unwrap_or(i64::MAX);
        let level = self.level.saturating_add(i64::try_from(gained).unwrap_or(i64::MAX));
        if level >= full {
            (self.level, self.updated) = (full, now);
        } else {
            self.level = level;
            // Only the time that made whole tokens is spent: the rest counts the next time.
            self.updated += nanoseconds(gained * SECOND / per_second);
        }
    }

    /// How long until the bucket holds a token.
    fn wait(&self) -> Duration {
        let missing = u128::from(1i64.saturating_sub(self.level).max(0).unsigned_abs());
        nanoseconds((missing * SECOND).div_ceil(self.rate.per_second.get().into()))
    }

    fn spend(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub_unsigned(tokens);
    }
}

fn nanoseconds(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Both buckets of a [`RateLimit`], and a timer that wakes the device when there is something in them again.
#[derive(Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// Absent where nothing is limited.
    timer: Option<OwnedFd>,
}

impl RateLimiter {
    /// Full buckets, or those of `state`. Fails where no descriptor is left for the timer.
    pub fn new(limit: &RateLimit, state: &RateState) -> io::Result<Self> {
        let now = Instant::now();
        let limited = limit.bytes.is_some() || limit.operations.is_some();
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = limited.then(|| rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)).transpose()?;
        Ok(Self {
            bytes: limit.bytes.map(|rate| Bucket::new(rate, state.bytes, now)),
            operations: limit.operations.map(|rate| Bucket::new(rate, state.operations, now)),
            timer,
        })
    }

    /// What is in the buckets now.
    pub fn state(&self) -> RateState {
        let level = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.level);
        RateState { bytes: level(&self.bytes), operations: level(&self.operations) }
    }

    /// Readable when a request that was refused would be let through.
    pub fn timer(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }

    /// Takes notice of the timer, so that it is not readable any more.
    pub fn acknowledge(&self) {
        if let Some(timer) = &self.timer {
            // Nothing to read is as good as having read it.
            let _: Result<usize, Errno> = rustix::io::read(timer, &mut [0; 8]);
        }
    }

    /// Whether one more request may be made at `now`; if not, the timer is set for when it may.
    pub fn admits(&mut self, now: Instant) -> bool {
        let mut wait = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.operations].into_iter().flatten() {
            bucket.refill(now);
            wait = wait.max(bucket.wait());
        }
        if wait.is_zero() {
            return true;
        }
        if let Some(timer) = &self.timer {
            let it_value = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            };
            let when = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            // The descriptor is a timer and the time is valid: nothing is left to fail.
            let _ = rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &when);
        }
        false
    }

    /// A request of so many bytes was made.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.spend(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap() }
    }

    fn limiter(limit: RateLimit) -> (RateLimiter, Instant) {
        let limiter = RateLimiter::new(&limit, &RateState::default()).unwrap();
        let start = limiter.bytes.as_ref().or(limiter.operations.as_ref()).map_or_else(Instant::now, |b| b.updated);
        (limiter, start)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (mut limiter, start) = limiter(RateLimit { bytes: None, operations: Some(rate(10, 3)) });
        for _ in 0..3 {
            assert!(limiter.admits(start));
            limiter.spend(1 << 40);
        }
        assert!(!limiter.admits(start));
        assert!(!limiter.admits(start + Duration::from_millis(99)));
        assert!(limiter.admits(start + Duration::from_millis(100)));
        limiter.spend(0);
        assert!(!limiter.admits(start + Duration::from_millis(199)));
        assert!(limiter.admits(start + Duration::from_millis(200)));
    }

    #[test]
    fn a_request_larger_than_the_bucket_is_paid_off_afterwards() {
        let (mut limiter, start) = limiter(RateLimit { bytes: Some(rate(1000, 100)), operations: None });
        assert!(limiter.admits(start));
        limiter.spend(2100);
        assert!(!limiter.admits(start + Duration::from_secs(2)));
        assert!(limiter.admits(start + Duration::from_millis(2001)));
    }

    #[test]
    fn the_timer_wakes() {
        let (mut limiter, start) = limiter(RateLimit { bytes: None, operations: Some(rate(100, 1)) });
        limiter.spend(0);
        assert!(!limiter.admits(start));
        let mut watched = [rustix::event::PollFd::new(limiter.timer.as_ref().unwrap(), rustix::event::PollFlags::IN)];
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut watched, Some(&patience)).unwrap(), 1);
        limiter.acknowledge();
        assert!(limiter.admits(Instant::now()));
    }

    #[test]
    fn debt_survives_a_snapshot() {
        let limit = RateLimit { bytes: Some(rate(10, 10)), operations: None };
        let (mut limiter, _) = limiter(limit);
        limiter.spend(25);
        let restored = RateLimiter::new(&limit, &limiter.state()).unwrap();
        assert_eq!(restored.state(), RateState { bytes: Some(-15), operations: None });
    }

    proptest! {
        /// Whatever is asked and whenever: over any time no more than burst + rate * time + one request gets through.
        #[test]
        fn never_more_than_the_rate(
            per_second in 1..u64::from(u32::MAX),
            burst in 1..u64::from(u32::MAX),
            requests in prop::collection::vec((0..1u64 << 20, 0..1u64 << 32), 1..100),
        ) {
            let (mut limiter, start) = limiter(RateLimit { bytes: Some(rate(per_second, burst)), operations: None });
            let (mut now, mut passed) = (start, 0u128);
            for (bytes, pause) in requests {
                now += Duration::from_nanos(pause);
                if limiter.admits(now) {
                    let allowance = u128::from(burst) + (now - start).as_nanos() * u128::from(per_second) / SECOND;
                    prop_assert!(passed < allowance, "{passed} of {allowance}");
                    limiter.spend(bytes);
                    passed += u128::from(bytes);
                }
            }
        }

        #[test]
        fn extremes_do_not_overflow(per_second in 1..=u64::MAX, burst in 1..=u64::MAX, bytes: u64, pause: u32) {
            let (mut limiter, start) = limiter(RateLimit { bytes: Some(rate(per_second, burst)), operations: Some(rate(1, 1)) });
            limiter.spend(bytes);
            limiter.spend(bytes);
            limiter.admits(start + Duration::from_secs(pause.into()));
        }
    }
}
