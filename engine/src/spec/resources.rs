//! Limits as the cgroup part of an OCI configuration.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use crate::options::Limits;

use super::Error;

/// The least memory a container can start with, bytes; docker's bound.
pub const MIN_MEMORY: u64 = 6 << 20;
/// The period of the CPU quota, microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// Checks what limits say together. `cpus` is the number of processors of the host.
pub fn check(limits: &Limits, cpus: usize) -> Result<(), Error> {
    let refuse = |flag, value: String, reason: String| Err(Error::Limit { flag, value, reason });
    if let Some(memory) = limits.memory {
        if memory < MIN_MEMORY {
            return refuse(
                "--memory",
                memory.to_string(),
                String::from("too little to start a process; give at least 6m"),
            );
        }
        if i64::try_from(memory).is_err() {
            return refuse(
                "--memory",
                memory.to_string(),
                String::from("more than any kernel can count; give at most 8388607t"),
            );
        }
    }
    if let Some(swap) = limits.memory_swap.filter(|swap| *swap != 0) {
        match limits.memory {
            None if swap > 0 => {
                return refuse(
                    "--memory-swap",
                    swap.to_string(),
                    String::from("it counts memory and swap together; give --memory as well"),
                );
            }
            Some(memory) if swap > 0 && swap.unsigned_abs() < memory => {
                let reason = format!(
                    "it counts memory and swap together; give at least --memory, {memory} bytes, or -1 for no limit"
                );
                return refuse("--memory-swap", swap.to_string(), reason);
            }
            _ if swap < -1 => {
                return refuse(
                    "--memory-swap",
                    swap.to_string(),
                    String::from("give a size such as 1g, or -1 for no limit"),
                );
            }
            _ => {}
        }
    }
    let most = limits.memory.unwrap_or(i64::MAX.unsigned_abs());
    if let Some(reservation) = limits.memory_reservation.filter(|reservation| *reservation > most) {
        return refuse("--memory-reservation", reservation.to_string(), String::from("give at most --memory"));
    }
    if let Some(wanted) = limits.cpus {
        let most = u32::try_from(cpus).map_or(f64::INFINITY, f64::from);
        if !wanted.is_finite() || wanted < 0.01 || wanted > most {
            return refuse("--cpus", wanted.to_string(), format!("give 0.01 to {cpus}: this host has {cpus} CPUs"));
        }
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| !(2..=262_144).contains(shares)) {
        return refuse("--cpu-shares", shares.to_string(), String::from("give 2 to 262144; 1024 is what others have"));
    }
    if let Some(pids) = limits.pids.filter(|pids| *pids < -1) {
        return refuse("--pids-limit", pids.to_string(), String::from("give 1 or more, or -1 for no limit"));
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| !(10..=1000).contains(weight)) {
        return refuse("--blkio-weight", weight.to_string(), String::from("give 10 to 1000; 500 is what others have"));
    }
    Ok(())
}

/// The limits as OCI resources, without device rules: also what `berth update` sends to a running container.
///
/// As in docker, swap may grow to as much again as memory where only memory is limited.
pub fn resources(limits: &Limits) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_memory(memory(limits));
    resources.set_cpu(cpu(limits));
    resources.set_block_io(block_io(limits));
    resources.set_pids(limits.pids.map(|pids| {
        let mut limit = LinuxPids::default();
        limit.set_limit(if pids == 0 { -1 } else { pids });
        limit
    }));
    resources
}

fn memory(limits: &Limits) -> Option<LinuxMemory> {
    let limit = limits.memory.map(saturate);
    let swap = limits.memory_swap.filter(|swap| *swap != 0).or(limit.map(|limit| limit.saturating_mul(2)));
    let reservation = limits.memory_reservation.map(saturate);
    if limit.is_none() && swap.is_none() && reservation.is_none() {
        return None;
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(swap).set_reservation(reservation);
    Some(memory)
}

fn cpu(limits: &Limits) -> Option<LinuxCpu> {
    if limits.cpus.is_none() && limits.cpu_shares.is_none() && limits.cpuset_cpus.is_none() {
        return None;
    }
    let mut cpu = LinuxCpu::default();
    if let Some(cores) = limits.cpus {
        #[allow(clippy::cast_precision_loss, reason = "the period is a small constant")]
        let quota = (cores * CPU_PERIOD as f64).round() as i64;
        cpu.set_quota(Some(quota)).set_period(Some(CPU_PERIOD));
    }
    cpu.set_shares(limits.cpu_shares).set_cpus(limits.cpuset_cpus.clone());
    Some(cpu)
}

fn block_io(limits: &Limits) -> Option<LinuxBlockIo> {
    let weight = limits.blkio_weight?;
    let mut block_io = LinuxBlockIo::default();
    block_io.set_weight(Some(weight));
    Some(block_io)
}

fn saturate(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_is_nothing_set() {
        assert_eq!(resources(&Limits::default()), LinuxResources::default());
    }

    #[test]
    fn memory_alone_gives_as_much_swap_again() {
        let set = resources(&Limits { memory: Some(64 << 20), ..Limits::default() });
        let memory = set.memory().unwrap();
        assert_eq!(memory.limit(), Some(64 << 20));
        assert_eq!(memory.swap(), Some(128 << 20));
        assert_eq!(memory.reservation(), None);
    }

    #[test]
    fn swap_is_taken_as_given_and_zero_is_not_given() {
        let limits = Limits { memory: Some(64 << 20), memory_swap: Some(-1), ..Limits::default() };
        assert_eq!(resources(&limits).memory().unwrap().swap(), Some(-1));
        let limits = Limits { memory_swap: Some(100 << 20), ..limits };
        assert_eq!(resources(&limits).memory().unwrap().swap(), Some(100 << 20));
        let limits = Limits { memory_swap: Some(0), ..limits };
        assert_eq!(resources(&limits).memory().unwrap().swap(), Some(128 << 20));
    }

    #[test]
    fn cpus_become_a_quota_of_a_tenth_of_a_second() {
        let set = resources(&Limits {
            cpus: Some(1.5),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1".into()),
            ..Limits::default()
        });
        let cpu = set.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(150_000), Some(100_000), Some(512)));
        assert_eq!(cpu.cpus().as_deref(), Some("0-1"));
    }

    #[test]
    fn pids_weight_and_reservation_are_passed_on() {
        let set = resources(&Limits {
            pids: Some(7),
            blkio_weight: Some(300),
            memory_reservation: Some(8 << 20),
            ..Limits::default()
        });
        assert_eq!(set.pids().unwrap().limit(), 7);
        assert_eq!(set.block_io().as_ref().unwrap().weight(), Some(300));
        assert_eq!(set.memory().unwrap().reservation(), Some(8 << 20));
        assert_eq!(set.memory().unwrap().swap(), None);
        assert_eq!(resources(&Limits { pids: Some(0), ..Limits::default() }).pids().unwrap().limit(), -1);
    }

    #[test]
    fn bounds_are_checked_and_name_the_flag() {
        let memory = |memory| Limits { memory: Some(memory), ..Limits::default() };
        let cases = [
            ("--memory ", memory(MIN_MEMORY - 1)),
            ("--memory ", memory(u64::MAX)),
            ("--memory-swap", Limits { memory_swap: Some(1 << 30), ..Limits::default() }),
            ("--memory-swap", Limits { memory_swap: Some(1), ..memory(1 << 30) }),
            ("--memory-swap", Limits { memory_swap: Some(i64::MIN), ..memory(1 << 30) }),
            ("--memory-reservation", Limits { memory_reservation: Some(2 << 30), ..memory(1 << 30) }),
            ("--cpus", Limits { cpus: Some(2.01), ..Limits::default() }),
            ("--cpus", Limits { cpus: Some(0.0), ..Limits::default() }),
            ("--cpus", Limits { cpus: Some(-1.0), ..Limits::default() }),
            ("--cpus", Limits { cpus: Some(f64::NAN), ..Limits::default() }),
            ("--cpu-shares", Limits { cpu_shares: Some(1), ..Limits::default() }),
            ("--pids-limit", Limits { pids: Some(-2), ..Limits::default() }),
            ("--blkio-weight", Limits { blkio_weight: Some(9), ..Limits::default() }),
        ];
        for (flag, limits) in cases {
            let error = check(&limits, 2).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{error}");
        }
        check(&Limits { cpus: Some(2.0), memory_swap: Some(-1), ..memory(MIN_MEMORY) }, 2).unwrap();
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let before =
            Limits { memory: Some(1 << 30), pids: Some(5), cpuset_cpus: Some("0".into()), ..Limits::default() };
        let after = before.updated(&Limits { pids: Some(9), cpus: Some(0.5), ..Limits::default() });
        assert_eq!(after, Limits { pids: Some(9), cpus: Some(0.5), ..before });
    }
}
