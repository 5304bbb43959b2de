//! What the master counts, for Prometheus.

use std::fmt::Write as _;
use std::time::Duration;

use crate::master::{AgentState, Snapshot};

/// What there is to say of a master that stands by, in Prometheus' text format.
pub const STANDBY: &str = "# HELP berth_master_elected Whether this master leads.\n# TYPE berth_master_elected gauge\nberth_master_elected 0\n";

/// What only ever grows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Calls of frameworks that were done.
    pub calls: u64,
    /// Calls of frameworks that were refused.
    pub refused: u64,
    /// Calls that came too often.
    pub throttled: u64,
    /// Messages of frameworks that agents were too slow to read.
    pub messages_dropped: u64,
    /// Times the store was written to.
    pub commits: u64,
    cycles: u64,
    cycle_time: Duration,
    longest_cycle: Duration,
}

impl Counters {
    /// An allocation cycle took so long.
    pub fn cycle(&mut self, time: Duration) {
        self.cycles += 1;
        self.cycle_time += time;
        self.longest_cycle = self.longest_cycle.max(time);
    }

    /// All of it, in Prometheus' text format.
    pub fn write(&self, snapshot: &Snapshot, uptime: Duration) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP berth_master_{name} {help}\n# TYPE berth_master_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "berth_master_{name}{labels} {value}");
            }
        };
        let one = |value: f64| [(String::new(), value)];
        #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
        let count = |value: u64| [(String::new(), value as f64)];
        metric("elected", "gauge", "Whether this master leads.", &one(1.0));
        metric("uptime_seconds", "gauge", "Time since the start.", &one(uptime.as_secs_f64()));
        let states = [
            ("connected", AgentState::Connected),
            ("disconnected", AgentState::Disconnected),
            ("awaited", AgentState::Awaited),
            ("unreachable", AgentState::Unreachable),
        ];
        let amount = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
        let agents = states.map(|(name, state)| (format!("{{state=\"{name}\"}}"), amount(snapshot.agents_in(state))));
        metric("agents", "gauge", "Agents that are not gone.", &agents);
        let connected = snapshot.frameworks.iter().filter(|framework| framework.connected).count();
        let frameworks = [
            ("{state=\"connected\"}".to_owned(), amount(connected)),
            ("{state=\"disconnected\"}".to_owned(), amount(snapshot.frameworks.len() - connected)),
        ];
        metric("frameworks", "gauge", "Frameworks whose last task has not ended.", &frameworks);
        let tasks = snapshot.tasks_by_state().into_iter();
        let tasks: Vec<_> =
            tasks.map(|(state, count)| (format!("{{state=\"{}\"}}", state.name()), amount(count))).collect();
        metric("tasks", "gauge", "Tasks whose end was not acknowledged.", &tasks);
        metric("calls_total", "counter", "Calls of frameworks that were done.", &count(self.calls));
        metric("calls_refused_total", "counter", "Calls of frameworks that were refused.", &count(self.refused));
        metric("calls_throttled_total", "counter", "Calls that came too often.", &count(self.throttled));
        let help = "Messages to executors that are not there, or of agents that do not read.";
        metric("messages_dropped_total", "counter", help, &count(self.messages_dropped));
        metric("commits_total", "counter", "Transactions of the store.", &count(self.commits));
        metric("allocation_cycles_total", "counter", "Allocation cycles.", &count(self.cycles));
        let time = one(self.cycle_time.as_secs_f64());
        metric("allocation_seconds_total", "counter", "Time spent in allocation cycles.", &time);
        let longest = one(self.longest_cycle.as_secs_f64());
        metric("allocation_longest_seconds", "gauge", "The longest allocation cycle.", &longest);
        text
    }
}
