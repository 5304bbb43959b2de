//! What bounds the work that clients can make.

use std::time::Duration;

/// The largest body of a request, in bytes.
pub const BODY: usize = 16 << 20;
/// The largest record an agent sends: a registration with all its tasks.
pub const AGENT_RECORD: usize = 64 << 20;
/// The largest record of what a program beside a task is to read, in bytes.
pub const INPUT_RECORD: usize = 1 << 20;
/// How long the head of a request, or its body, may take to arrive.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The most connections at once.
pub const CONNECTIONS: usize = 20_000;
/// The most subscribers to what happens to agents, frameworks and tasks.
pub const OBSERVERS: usize = 100;
/// The largest head of a request, in bytes.
pub const HEAD: usize = 64 << 10;
/// The largest body of a request to join, in bytes: from somebody of whom nothing is known yet.
pub const JOIN: usize = 16 << 10;
/// How much of a body that is too large is read nevertheless.
pub const IN_VAIN: usize = 1 << 20;
/// How long it may take to shake hands.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// The most connections at once of which nobody knows whose they are.
pub const STRANGERS: usize = 1000;
/// The most of them from one address.
pub const STRANGERS_OF_ONE: usize = 100;
/// The most addresses, or certificates, whose requests are counted each for itself.
pub const KEPT_APART: usize = 10_000;
/// How long the kernel tries to reach a client that does not answer.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Calls of one framework, unless it is configured otherwise.
pub const FRAMEWORK_CALLS: Rate = Rate { each_second: 1000, at_once: 4000 };
/// Subscriptions to what happens: each copies the state as it is at that moment.
pub const SUBSCRIPTIONS: Rate = Rate { each_second: 10, at_once: 100 };
/// Everything else that is asked of the core.
pub const OTHER_CALLS: Rate = Rate { each_second: 500, at_once: 1000 };
/// Of it, what one certificate may ask.
pub const PEER_CALLS: Rate = Rate { each_second: 250, at_once: 500 };
/// What one address may ask, or try, without saying who it is.
pub const STRANGER_CALLS: Rate = Rate { each_second: 20, at_once: 100 };

/// How often something may happen.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// How often in the long run.
    pub each_second: u32,
    /// How often after a pause.
    pub at_once: u32,
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Duration) -> Bucket {
        Bucket { rate, tokens: f64::from(rate.at_once), filled: now }
    }

    fn fill(&mut self, now: Duration) {
        let fresh = now.saturating_sub(self.filled).as_secs_f64() * f64::from(self.rate.each_second);
        self.tokens = (self.tokens + fresh).min(f64::from(self.rate.at_once));
        self.filled = self.filled.max(now);
    }

    /// Whether there is a token.
    pub fn has(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.tokens >= 1.0
    }

    /// Whether it is as a new one.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.tokens >= f64::from(self.rate.at_once)
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Duration) -> bool {
        let enough = self.has(now);
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_bounds_bursts_and_the_long_run() {
        let mut bucket = Bucket::new(Rate { each_second: 10, at_once: 5 }, Duration::ZERO);
        let mut taken = |millis| (0..100).filter(|_| bucket.take(Duration::from_millis(millis))).count();
        assert_eq!(taken(0), 5);
        assert_eq!(taken(100), 1);
        assert_eq!(taken(50), 0);
        assert_eq!(taken(10_000), 5);
    }
}
