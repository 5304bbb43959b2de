//! When to try again, and after how long.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use reqwest::{Response, StatusCode, header::RETRY_AFTER};

use super::{Connection, Event, Progress};

/// Longest wait between two tries.
const LONGEST: Duration = Duration::from_mins(1);

/// The tries of one request.
pub struct Retry {
    attempts: u32,
    delay: Duration,
    failed: u32,
}

impl Retry {
    pub fn new(connection: &Connection) -> Self {
        Self { attempts: connection.attempts, delay: connection.delay, failed: 0 }
    }

    /// One try.
    pub fn never() -> Self {
        Self { attempts: 1, delay: Duration::ZERO, failed: 0 }
    }

    /// There was progress: failures count from zero again.
    pub fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try; `false` when there is none.
    pub async fn again(&mut self, reason: &str, asked: Option<Duration>, progress: &dyn Progress) -> bool {
        self.failed += 1;
        if self.failed >= self.attempts {
            return false;
        }
        progress.report(Event::Retrying { reason: reason.to_owned() });
        let wait = asked.unwrap_or_else(|| backoff(self.delay, self.failed));
        tokio::time::sleep(wait.min(LONGEST)).await;
        true
    }
}

/// Doubles with every failure; half of it is left to chance, so that many clients do not come back together.
fn backoff(first: Duration, failed: u32) -> Duration {
    let full = first.saturating_mul(1 << failed.saturating_sub(1).min(10));
    let chance = RandomState::new().build_hasher().finish() % 1000;
    full / 2 + full / 2 * chance as u32 / 1000
}

/// Whether the same request may go well later.
pub fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}

/// The wait a response asks for, in seconds.
pub fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_within_bounds() {
        let first = Duration::from_millis(100);
        for failed in 1..6 {
            let full = first * (1 << (failed - 1));
            for _ in 0..20 {
                let wait = backoff(first, failed);
                assert!(wait >= full / 2 && wait <= full, "{failed}: {wait:?}");
            }
        }
        assert!(backoff(first, u32::MAX) <= first * 1024);
    }
}
