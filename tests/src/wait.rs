//! Waiting for a condition, with a deadline: the only way a test waits.

use std::time::{Duration, Instant};

/// How long a test waits for what should happen soon. Generous: the machine may be small and busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Whether `condition` came true before `deadline` had passed.
pub fn within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Waits until `condition` holds; `what` names it.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(DEADLINE, condition), "waited {DEADLINE:?} in vain until {what}");
}

/// Waits until `look` finds something, and returns it; `what` names it.
pub fn for_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = look();
        found.is_some()
    });
    found.expect("the condition is that it is there")
}
