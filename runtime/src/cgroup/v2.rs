//! OCI resources as values of cgroup v2 files (Documentation/admin-guide/cgroup-v2.rst of Linux).

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory};

use super::resources::unsupported;
use super::{Error, Result, Warning, file, write};

/// Enables controllers (all the host has, or only `wanted`) in every group from the root down to the parent of `path`.
///
/// One that cannot be enabled is no error here: it is one where a limit asks for it. (`cpu` cannot while a real-time
/// process is outside the root.)
pub(super) fn enable_controllers(root: &Path, path: &Path, wanted: Option<&str>) -> Result<()> {
    let mut group = root.to_owned();
    for name in path {
        let available = file::read(&group.join("cgroup.controllers"))?;
        let control = group.join("cgroup.subtree_control");
        let enabled = file::read(&control)?;
        let missing: Vec<_> = available
            .split_ascii_whitespace()
            .filter(|controller| wanted.is_none_or(|wanted| wanted == *controller))
            .filter(|controller| !enabled.split_ascii_whitespace().any(|enabled| enabled == *controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        // The kernel takes all or nothing of one write.
        if !missing.is_empty() && file::try_write(&control, &missing.join(" ")).is_err() {
            for controller in &missing {
                let _ = file::try_write(&control, controller);
            }
        }
        group.push(name);
    }
    Ok(())
}

pub(super) fn memory(dir: &Path, memory: &LinuxMemory, warnings: &mut Vec<Warning>) -> Result<()> {
    let swap = swap(memory)?;
    if let Some(swap) = swap {
        let path = dir.join("memory.swap.max");
        if path.exists() {
            write(&path, &swap)?;
        } else if memory.swap().is_some() {
            warnings.push(Warning { limit: "memory.swap", reason: "this kernel does not account swap" });
        }
    }
    if let Some(limit) = memory.limit() {
        let usage = file::number(dir, "memory.current").unwrap_or(0);
        if memory.check_before_update() == Some(true) && u64::try_from(limit).is_ok_and(|limit| limit < usage) {
            return Err(Error::Invalid {
                limit: "memory.limit".to_owned(),
                reason: format!("{usage} bytes are in use, more than {limit}, and checkBeforeUpdate is set"),
            });
        }
        write(&dir.join("memory.max"), &or_max(limit))?;
    }
    if let Some(reservation) = memory.reservation() {
        write(&dir.join("memory.low"), &or_max(reservation))?;
    }
    for (limit, asked) in [
        ("memory.swappiness", memory.swappiness().is_some()),
        ("memory.kernelTCP", memory.kernel_tcp().is_some()),
        ("memory.disableOOMKiller", memory.disable_oom_killer() == Some(true)),
    ] {
        if asked {
            warnings.push(Warning { limit, reason: "cgroup v2 does not have it" });
        }
    }
    Ok(())
}

/// v2 limits swap by itself, the OCI configuration memory and swap together.
fn swap(memory: &LinuxMemory) -> Result<Option<String>> {
    let invalid = |reason: String| Error::Invalid { limit: "memory.swap".to_owned(), reason };
    Ok(match (memory.swap(), memory.limit()) {
        (None, Some(-1)) | (Some(-1), _) => Some("max".to_owned()),
        (None, _) => None,
        (Some(swap), Some(limit)) if limit >= 0 && swap >= limit => Some((swap - limit).to_string()),
        (Some(swap), Some(-1)) => {
            return Err(invalid(format!("it is {swap} while memory.limit is unlimited")));
        }
        (Some(swap), Some(limit)) => {
            return Err(invalid(format!("it is {swap}, less than memory.limit {limit}, which is part of it")));
        }
        (Some(_), None) => {
            return Err(invalid("on cgroup v2 it needs memory.limit, which is part of it".to_owned()));
        }
    })
}

pub(super) fn cpu(dir: &Path, cpu: &LinuxCpu) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        write(&dir.join("cpu.weight"), &cpu_weight(shares).to_string())?;
    }
    let path = dir.join("cpu.max");
    let period = cpu.period().filter(|period| *period != 0);
    let quota = match (cpu.quota().filter(|quota| *quota != 0), period) {
        (Some(quota), _) => Some(or_max(quota)),
        // A period cannot be written alone.
        (None, Some(_)) => file::read(&path)?.split(' ').next().map(str::to_owned),
        (None, None) => None,
    };
    if let Some(quota) = quota {
        write(&path, &period.map_or(quota.clone(), |period| format!("{quota} {period}")))?;
    }
    if let Some(burst) = cpu.burst() {
        write(&dir.join("cpu.max.burst"), &burst.to_string())?;
    }
    if let Some(idle) = cpu.idle() {
        write(&dir.join("cpu.idle"), &idle.to_string())?;
    }
    if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
        || cpu.realtime_period().is_some_and(|period| period != 0)
    {
        return Err(unsupported("cpu", "cpu.realtimeRuntime on cgroup v2"));
    }
    Ok(())
}

/// v1's shares (2 to 262144, default 1024) as v2's weight (1 to 10000, default 100), so that the ends and the
/// defaults meet: a parabola in logarithms, the one the OCI runtimes agreed on.
fn cpu_weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144) as u32;
    if shares == 262_144 {
        return 10_000;
    }
    let log = f64::from(shares).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

pub(super) fn block_io(dir: &Path, io: &LinuxBlockIo) -> Result<()> {
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(unsupported("io", "blockIO.leafWeight"));
    }
    let devices = io.weight_device().iter().flatten();
    let devices =
        devices.filter_map(|device| Some((format!("{}:{} ", device.major(), device.minor()), device.weight()?)));
    let all = io.weight().filter(|weight| *weight != 0).map(|weight| (String::new(), weight));
    for (device, weight) in all.into_iter().chain(devices) {
        let bfq = dir.join("io.bfq.weight");
        if bfq.exists() {
            write(&bfq, &format!("{device}{weight}"))?;
        } else if dir.join("io.weight").exists() {
            write(&dir.join("io.weight"), &format!("{device}{}", io_weight(weight)))?;
        } else {
            return Err(unsupported("io", "blockIO.weight"));
        }
    }
    for (key, rates) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for rate in rates.iter().flatten() {
            // As on v1, a rate of zero lifts the limit.
            let value = if rate.rate() == 0 { "max".to_owned() } else { rate.rate().to_string() };
            write(&dir.join("io.max"), &format!("{}:{} {key}={value}", rate.major(), rate.minor()))?;
        }
    }
    Ok(())
}

/// v1's weight (10 to 1000) on v2's scale (1 to 10000), linearly.
fn io_weight(weight: u16) -> u32 {
    1 + u32::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// A limit as v2 writes it: negative is none.
pub(super) fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_ends_and_defaults() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(cpu_weight), [1, 1, 100, 10_000, 10_000]);
        assert!((3..262_144).step_by(997).all(|shares| cpu_weight(shares) <= cpu_weight(shares + 997)));
        assert_eq!([10, 500, 1000, 5].map(io_weight), [1, 4950, 10_000, 1]);
    }
}
