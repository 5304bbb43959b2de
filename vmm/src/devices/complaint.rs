//! Log lines a guest can cause, but not at will.

use std::fmt::Display;

/// Something that goes wrong with a device. Logged the first time, the second, the fourth and so on, so that a guest
/// that provokes it forever fills no disk.
#[derive(Debug, Default)]
pub struct Complaint {
    times: u64,
}

impl Complaint {
    /// It went wrong: `what` failed because of `why`.
    pub fn raise(&mut self, what: &str, why: impl Display) {
        self.times = self.times.saturating_add(1);
        if self.times.is_power_of_two() {
            tracing::warn!(times = self.times, "{what}: {why}");
        }
    }
}
