//! What containers use of the host, from two looks at their control groups.

use std::thread;
use std::time::{Duration, Instant};

use berth_runtime::cgroup;
use serde::Serialize;

use crate::container::Container;
use crate::error::Result;
use crate::vm;

/// What one container uses.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Usage {
    /// The id.
    #[serde(rename = "ID")]
    pub id: String,
    /// The name.
    pub name: String,
    /// Per cent of one core between the two looks.
    #[serde(rename = "CPUPerc")]
    pub cpu_percent: f64,
    /// Memory in use, bytes.
    pub memory: u64,
    /// The most memory it may use, bytes: its limit, or what the host has.
    pub memory_limit: u64,
    /// Processes and threads.
    #[serde(rename = "PIDs")]
    pub pids: u64,
    /// Bytes read from disks.
    pub block_read: u64,
    /// Bytes written to disks.
    pub block_write: u64,
    /// Exits of a microVM so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits: Option<vm::Exits>,
}

impl Usage {
    /// Memory in use as a part of the limit, in per cent.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn memory_percent(&self) -> f64 {
        if self.memory_limit == 0 { 0.0 } else { self.memory as f64 / self.memory_limit as f64 * 100.0 }
    }
}

/// One look at one container.
#[derive(Debug)]
struct Sample {
    at: Instant,
    stats: cgroup::Stats,
}

impl Sample {
    /// `None`: the container does not run any more.
    fn take(container: &Container) -> Option<Self> {
        let stats = container.sandbox().ok()?.stats().ok()?;
        Some(Self { at: Instant::now(), stats })
    }
}

/// Looks at containers again and again.
#[derive(Debug)]
pub struct Sampler {
    containers: Vec<(Container, Option<Sample>)>,
    host_memory: u64,
}

impl Sampler {
    /// Takes the first look.
    pub fn new(containers: Vec<Container>) -> Result<Self> {
        let containers = containers.into_iter().map(|container| {
            let sample = Sample::take(&container);
            (container, sample)
        });
        Ok(Self { containers: containers.collect(), host_memory: crate::info::host_memory()? })
    }

    /// Looks at these from now on; those that were looked at already are compared with the last look.
    pub fn watch(&mut self, containers: Vec<Container>) {
        let mut before = std::mem::take(&mut self.containers);
        let entries = containers.into_iter().map(|container| {
            let known = before.iter().position(|(known, _)| known.id() == container.id());
            let sample = match known {
                Some(known) => before.swap_remove(known).1,
                None => Sample::take(&container),
            };
            (container, sample)
        });
        self.containers = entries.collect();
    }

    /// Takes the next look after `interval` and compares it with the last; those that do not run use nothing.
    pub fn next(&mut self, interval: Duration) -> Vec<Usage> {
        thread::sleep(interval);
        let host_memory = self.host_memory;
        let looks = self.containers.iter_mut().map(|(container, last)| {
            let now = Sample::take(container);
            let usage = usage(container, last.as_ref(), now.as_ref(), host_memory);
            *last = now;
            usage
        });
        looks.collect()
    }
}

fn usage(container: &Container, last: Option<&Sample>, now: Option<&Sample>, host_memory: u64) -> Usage {
    let stats = now.map(|sample| sample.stats).unwrap_or_default();
    let cpu_percent = match (last, now) {
        (Some(last), Some(now)) => {
            let used = now.stats.cpu.usage.saturating_sub(last.stats.cpu.usage);
            let passed = now.at.duration_since(last.at);
            if passed.is_zero() { 0.0 } else { used.as_secs_f64() / passed.as_secs_f64() * 100.0 }
        }
        _ => 0.0,
    };
    Usage {
        id: container.id().to_owned(),
        name: container.name().to_owned(),
        cpu_percent,
        memory: stats.memory.usage,
        memory_limit: stats.memory.limit.unwrap_or(host_memory).min(host_memory),
        pids: stats.pids.current,
        block_read: stats.block_io.read_bytes,
        block_write: stats.block_io.write_bytes,
        exits: now.and_then(|_| vm::known_exits(container)),
    }
}
