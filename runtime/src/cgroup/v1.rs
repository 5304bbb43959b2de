//! OCI resources as values of cgroup v1 files (Documentation/admin-guide/cgroup-v1 of Linux).

use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxThrottleDevice};

use super::resources::unsupported;
use super::{Error, Result, Warning, file, write};

/// A new cpuset is empty, and an empty one takes no process: it gets what its parent has.
pub(super) fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        inherit(dir, name)?;
    }
    Ok(())
}

fn inherit(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    let own = file::read(&path)?;
    let Some(parent) = dir.parent().filter(|_| own.is_empty()) else {
        return Ok(own);
    };
    // Above the root there is no such file; the root itself is never empty.
    let inherited = inherit(parent, name)?;
    write(&path, &inherited)?;
    Ok(inherited)
}

pub(super) fn memory(dir: &Path, memory: &LinuxMemory, warnings: &mut Vec<Warning>) -> Result<()> {
    let limit_file = dir.join("memory.limit_in_bytes");
    let swap_file = dir.join("memory.memsw.limit_in_bytes");
    // Memory without bounds cannot have less than that together with swap.
    let mut swap = memory.swap().or_else(|| memory.limit().filter(|limit| *limit == -1));
    if swap.is_some() && !swap_file.exists() {
        if memory.swap().is_some() {
            warnings.push(Warning { limit: "memory.swap", reason: "this kernel does not account swap" });
        }
        swap = None;
    }
    if let Some(limit) = memory.limit() {
        match file::try_write(&limit_file, &limit.to_string()) {
            // The kernel keeps memory <= memory + swap at all times: on the way up the sum goes first.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && swap.is_some() => {
                write(&swap_file, &swap.unwrap_or(-1).to_string())?;
                write(&limit_file, &limit.to_string())?;
            }
            Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
                return Err(in_use(dir, limit));
            }
            Err(source) => {
                return Err(Error::Write { path: limit_file, value: limit.to_string(), source });
            }
            Ok(()) => {}
        }
    }
    if let Some(swap) = swap {
        write(&swap_file, &swap.to_string())?;
    }
    if let Some(reservation) = memory.reservation() {
        write(&dir.join("memory.soft_limit_in_bytes"), &reservation.to_string())?;
    }
    if let Some(tcp) = memory.kernel_tcp() {
        write(&dir.join("memory.kmem.tcp.limit_in_bytes"), &tcp.to_string())?;
    }
    if let Some(swappiness) = memory.swappiness() {
        write(&dir.join("memory.swappiness"), &swappiness.to_string())?;
    }
    if memory.disable_oom_killer() == Some(true) {
        write(&dir.join("memory.oom_control"), "1")?;
    }
    Ok(())
}

fn in_use(dir: &Path, limit: i64) -> Error {
    let usage = file::number(dir, "memory.usage_in_bytes").unwrap_or(0);
    Error::Invalid {
        limit: "memory.limit".to_owned(),
        reason: format!("{usage} bytes are in use and the kernel cannot reclaim them down to {limit}"),
    }
}

pub(super) fn cpu(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        write(&dir.join("cpu.shares"), &shares.to_string())?;
    }
    let quota = cpu.quota().filter(|quota| *quota != 0).map(|quota| quota.to_string());
    let mut period = cpu.period().filter(|period| *period != 0).map(|period| period.to_string());
    // Within a limited parent the kernel refuses a ratio above the parent's, even between two writes: a period that is
    // refused at first may be accepted after the quota.
    if let (Some(_), Some(value)) = (&quota, &period)
        && file::try_write(&dir.join("cpu.cfs_period_us"), value).is_ok()
    {
        period = None;
    }
    let writes = [
        ("cpu.cfs_quota_us", quota),
        ("cpu.cfs_period_us", period),
        ("cpu.cfs_burst_us", cpu.burst().map(|burst| burst.to_string())),
        ("cpu.idle", cpu.idle().map(|idle| idle.to_string())),
        ("cpu.rt_period_us", cpu.realtime_period().map(|period| period.to_string())),
        ("cpu.rt_runtime_us", cpu.realtime_runtime().map(|runtime| runtime.to_string())),
    ];
    for (name, value) in writes {
        if let Some(value) = value {
            write(&dir.join(name), &value)?;
        }
    }
    Ok(())
}

pub(super) fn block_io(dir: &Path, io: &LinuxBlockIo) -> Result<()> {
    // The bfq scheduler has names of its own for the weights.
    let weight_file = |name: &str, limit: &str| {
        let candidates = ["blkio", "blkio.bfq"].map(|prefix| dir.join(format!("{prefix}.{name}")));
        candidates.into_iter().find(|path| path.exists()).ok_or_else(|| unsupported("blkio", limit))
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        write(&weight_file("weight", "blockIO.weight")?, &weight.to_string())?;
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        write(&weight_file("leaf_weight", "blockIO.leafWeight")?, &weight.to_string())?;
    }
    for device in io.weight_device().iter().flatten() {
        let value = |weight| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight() {
            write(&weight_file("weight_device", "blockIO.weightDevice")?, &value(weight))?;
        }
        if let Some(weight) = device.leaf_weight() {
            write(&weight_file("leaf_weight_device", "blockIO.weightDevice")?, &value(weight))?;
        }
    }
    for (name, rates) in [
        ("read_bps_device", io.throttle_read_bps_device()),
        ("write_bps_device", io.throttle_write_bps_device()),
        ("read_iops_device", io.throttle_read_iops_device()),
        ("write_iops_device", io.throttle_write_iops_device()),
    ] {
        for rate in rates.iter().flatten() {
            write(&dir.join(format!("blkio.throttle.{name}")), &throttle(rate))?;
        }
    }
    Ok(())
}

fn throttle(rate: &LinuxThrottleDevice) -> String {
    format!("{}:{} {}", rate.major(), rate.minor(), rate.rate())
}
