//! What a group has used.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hierarchies::Controller;
use super::{CgroupManager, Result, file};

/// v1 writes "no limit" as the largest multiple of the page size.
const V1_UNLIMITED: u64 = i64::MAX as u64 & !0xF_FFFF;

/// What a group has used since it was made, and has now. What the host does not count is zero or `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Disks.
    pub block_io: BlockIo,
}

/// Processor time, summed over all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// All of it.
    pub usage: Duration,
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// Enforcement periods of the CPU limit that have passed.
    pub periods: u64,
    /// Periods in which the limit was reached.
    pub throttled_periods: u64,
    /// Time for which the group had to wait because of its limit.
    pub throttled: Duration,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In use, without the page cache that is given back first (`inactive_file`), as docker counts.
    pub usage: u64,
    /// The limit; `None`: there is none.
    pub limit: Option<u64>,
    /// The highest use so far, page cache included; `None`: not counted (v2 before Linux 5.19).
    pub peak: Option<u64>,
    /// Swap in use; `None`: not counted.
    pub swap: Option<u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None`: there is no limit.
    pub limit: Option<u64>,
}

/// Disk traffic, over all disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

impl CgroupManager {
    /// What the group has used.
    pub fn stats(&self) -> Result<Stats> {
        // A group that is gone is an error, and not a container that uses nothing.
        file::read(&self.main_dir().join("cgroup.procs"))?;
        Ok(Stats {
            cpu: self.cpu_stats(),
            memory: self.memory_stats(),
            pids: self.pids_stats(),
            block_io: self.block_io_stats(),
        })
    }

    /// How many processes of the group the kernel has ended for want of memory. Zero for a group that is gone.
    pub fn oom_kills(&self) -> u64 {
        let (dir, name) = match self.controller("memory") {
            Controller::V1(dir) => (dir, "memory.oom_control"),
            Controller::V2(dir) => (dir, "memory.events"),
            Controller::Missing => return 0,
        };
        file::keyed(&content(&dir, name), "oom_kill").unwrap_or(0)
    }

    fn cpu_stats(&self) -> Cpu {
        let mut cpu = Cpu::default();
        if let Controller::V1(dir) = self.controller("cpuacct") {
            let nanos = |name| Duration::from_nanos(file::number(&dir, name).unwrap_or(0));
            cpu.usage = nanos("cpuacct.usage");
            cpu.user = nanos("cpuacct.usage_user");
            cpu.system = nanos("cpuacct.usage_sys");
        }
        let (dir, v2) = match self.controller("cpu") {
            Controller::V1(dir) => (dir, false),
            Controller::V2(dir) => (dir, true),
            Controller::Missing => return cpu,
        };
        let stat = content(&dir, "cpu.stat");
        let value = |key| file::keyed(&stat, key).unwrap_or(0);
        cpu.periods = value("nr_periods");
        cpu.throttled_periods = value("nr_throttled");
        if v2 {
            cpu.usage = Duration::from_micros(value("usage_usec"));
            cpu.user = Duration::from_micros(value("user_usec"));
            cpu.system = Duration::from_micros(value("system_usec"));
            cpu.throttled = Duration::from_micros(value("throttled_usec"));
        } else {
            cpu.throttled = Duration::from_nanos(value("throttled_time"));
        }
        cpu
    }

    fn memory_stats(&self) -> Memory {
        match self.controller("memory") {
            Controller::V1(dir) => {
                let usage = file::number(&dir, "memory.usage_in_bytes").unwrap_or(0);
                let cache = file::keyed(&content(&dir, "memory.stat"), "total_inactive_file").unwrap_or(0);
                Memory {
                    usage: usage.saturating_sub(cache),
                    limit: file::number(&dir, "memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
                    peak: file::number(&dir, "memory.max_usage_in_bytes"),
                    swap: file::number(&dir, "memory.memsw.usage_in_bytes").map(|both| both.saturating_sub(usage)),
                }
            }
            Controller::V2(dir) => {
                let usage = file::number(&dir, "memory.current").unwrap_or(0);
                let cache = file::keyed(&content(&dir, "memory.stat"), "inactive_file").unwrap_or(0);
                Memory {
                    usage: usage.saturating_sub(cache),
                    limit: file::number(&dir, "memory.max"),
                    peak: file::number(&dir, "memory.peak"),
                    swap: file::number(&dir, "memory.swap.current"),
                }
            }
            Controller::Missing => Memory::default(),
        }
    }

    fn pids_stats(&self) -> Pids {
        match self.controller("pids") {
            Controller::V1(dir) | Controller::V2(dir) => {
                Pids { current: file::number(&dir, "pids.current").unwrap_or(0), limit: file::number(&dir, "pids.max") }
            }
            Controller::Missing => Pids::default(),
        }
    }

    fn block_io_stats(&self) -> BlockIo {
        if let Controller::V1(dir) = self.controller("blkio") {
            let (read_bytes, write_bytes) = v1_io(&dir, "io_service_bytes_recursive");
            let (reads, writes) = v1_io(&dir, "io_serviced_recursive");
            return BlockIo { read_bytes, write_bytes, reads, writes };
        }
        match self.controller("io") {
            Controller::V2(dir) => v2_io(&content(&dir, "io.stat")),
            _ => BlockIo::default(),
        }
    }
}

fn content(dir: &Path, name: &str) -> String {
    file::try_read(&dir.join(name)).unwrap_or_default()
}

/// Sums of the lines `MAJOR:MINOR Read N` and `MAJOR:MINOR Write N`. The bfq scheduler counts for its disks, the
/// throttling layer for all; the latter stays empty where the kernel's policy for it was never used.
fn v1_io(dir: &Path, name: &str) -> (u64, u64) {
    let sums = |prefix: &str| {
        let content = content(dir, &format!("{prefix}.{name}"));
        let sum = |kind: &str| -> u64 {
            let fields = content.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            fields.filter_map(|f| if f.len() == 3 && f[1] == kind { f[2].parse::<u64>().ok() } else { None }).sum()
        };
        (sum("Read"), sum("Write"))
    };
    match sums("blkio.throttle") {
        (0, 0) => sums("blkio.bfq"),
        counted => counted,
    }
}

/// Sums of the lines `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N …`.
fn v2_io(content: &str) -> BlockIo {
    let sum = |key: &str| -> u64 {
        let fields = content.split_ascii_whitespace();
        fields.filter_map(|field| field.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
    };
    BlockIo { read_bytes: sum("rbytes"), write_bytes: sum("wbytes"), reads: sum("rios"), writes: sum("wios") }
}
