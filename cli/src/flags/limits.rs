//! The limits that `berth run` and `berth create` set and `berth update` changes.

use std::time::Duration;

use berth_engine::options::Limits;
use berth_engine::size;
use berth_engine::spec::{MIN_MEMORY, cpus};
use clap::Args;

/// Highest CPU number and count of CPUs a kernel can be built for (`CONFIG_NR_CPUS`).
const MAX_CPUS: u32 = 8192;

/// Limits of a container.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitFlags {
    /// Memory in bytes, or with k, m, g; beyond it the process is ended (at least 6m)
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// Memory and swap together in bytes, or with k, m, g; -1: no limit [default: twice --memory]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = swap)]
    memory_swap: Option<i64>,
    /// Memory to shrink towards when the host runs short, in bytes, or with k, m, g
    #[arg(long, value_name = "SIZE", value_parser = size::some_bytes)]
    memory_reservation: Option<u64>,
    /// CPU time in cores, for example 1.5; beyond it the process is slowed down
    #[arg(long, value_name = "CORES", allow_negative_numbers = true, value_parser = cores)]
    cpus: Option<f64>,
    /// Share of busy CPUs, 2 to 262144, others having 1024
    #[arg(short, long, value_name = "WEIGHT", allow_negative_numbers = true, value_parser = shares)]
    cpu_shares: Option<u64>,
    /// CPUs to run on, for example 0-2,4
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpuset_cpus: Option<String>,
    /// Number of processes and threads; -1: no limit
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = pids)]
    pids_limit: Option<i64>,
    /// Share of a busy disk, 10 to 1000, others having 500
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, value_parser = weight)]
    blkio_weight: Option<u16>,
}

impl From<LimitFlags> for Limits {
    fn from(flags: LimitFlags) -> Self {
        Self {
            // Zero is docker's word for no limit.
            memory: flags.memory.filter(|&bytes| bytes > 0),
            memory_swap: flags.memory_swap,
            memory_reservation: flags.memory_reservation,
            cpus: flags.cpus.filter(|&cores| cores > 0.0),
            cpu_shares: flags.cpu_shares.filter(|&weight| weight > 0),
            cpuset_cpus: flags.cpuset_cpus,
            pids: flags.pids_limit,
            blkio_weight: flags.blkio_weight.filter(|&weight| weight > 0),
        }
    }
}

fn memory(text: &str) -> Result<u64, String> {
    match size::bytes(text)? {
        0 => Ok(0),
        bytes if bytes < MIN_MEMORY => Err(String::from("too little to start a process; give at least 6m")),
        bytes if i64::try_from(bytes).is_err() => {
            Err(String::from("more than any host has; give a size, for example 512m"))
        }
        bytes => Ok(bytes),
    }
}

/// `--timeout`: a number with `ms`, `s`, `m` or `h`; seconds without.
pub fn time(text: &str) -> Result<Duration, String> {
    let advice = "give a time, for example 500ms, 30s, 5m or 1h";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| advice.to_owned())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" | "" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err(advice.to_owned()),
    };
    unit.checked_mul(number).filter(|time| !time.is_zero()).ok_or_else(|| advice.to_owned())
}

fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let example = "give memory and swap together, for example 1g, or -1 for no limit";
    match size::bytes(text).map(i64::try_from) {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(format!("more than any host has; {example}")),
        Err(_) => Err(format!("not a size; {example}")),
    }
}

fn cores(text: &str) -> Result<f64, String> {
    let most = cpus();
    match text.parse::<f64>() {
        Ok(0.0) => Ok(0.0),
        Ok(cores) if cores >= 0.01 && cores <= u32::try_from(most).map_or(f64::INFINITY, f64::from) => Ok(cores),
        _ => Err(format!("this host has {most} CPUs; give 0.01 to {most}, for example 0.5")),
    }
}

fn shares(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Ok(0),
        Ok(shares) if (2..=262_144).contains(&shares) => Ok(shares),
        _ => Err(String::from("give 2 to 262144, for example 512 for half of what others have")),
    }
}

/// The kernel's list format, see cpuset(7).
fn cpu_list(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|cpu| *cpu < MAX_CPUS && !text.starts_with('+'));
    let is_range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    };
    if text.len() <= 4096 && text.split(',').all(is_range) {
        Ok(text.to_owned())
    } else {
        Err(String::from("not a list of CPUs; give numbers and ranges, for example 0-2,4"))
    }
}

fn pids(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(0 | -1) => Ok(-1),
        Ok(pids) if pids > 0 => Ok(pids),
        _ => Err(String::from("give 1 or more, for example 100, or -1 for no limit")),
    }
}

fn weight(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Ok(0),
        Ok(weight) if (10..=1000).contains(&weight) => Ok(weight),
        _ => Err(String::from("give 10 to 1000, for example 250 for half of what others have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        limits: LimitFlags,
    }

    fn parse(args: &[&str]) -> Result<Limits, String> {
        Update::try_parse_from(std::iter::once(&"update").chain(args))
            .map(|update| update.limits.into())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_flag_sets_its_limit() {
        let none = Limits::default;
        let cases: [(&[&str], Limits); 14] = [
            (&[], none()),
            (&["--memory=0", "--cpus=0", "--cpu-shares=0", "--blkio-weight=0"], none()),
            (&["--memory", "512m"], Limits { memory: Some(512 << 20), ..none() }),
            (&["-m", "6m"], Limits { memory: Some(6 << 20), ..none() }),
            (&["--memory-swap", "1g"], Limits { memory_swap: Some(1 << 30), ..none() }),
            (&["--memory-swap", "-1"], Limits { memory_swap: Some(-1), ..none() }),
            (&["--memory-reservation", "1m"], Limits { memory_reservation: Some(1 << 20), ..none() }),
            (&["--cpus", "0.5"], Limits { cpus: Some(0.5), ..none() }),
            (&["--cpu-shares=512"], Limits { cpu_shares: Some(512), ..none() }),
            (&["-c", "2"], Limits { cpu_shares: Some(2), ..none() }),
            (&["--cpuset-cpus", "0-2,4"], Limits { cpuset_cpus: Some("0-2,4".into()), ..none() }),
            (&["--pids-limit", "-1"], Limits { pids: Some(-1), ..none() }),
            (&["--pids-limit", "64"], Limits { pids: Some(64), ..none() }),
            (&["--blkio-weight", "10"], Limits { blkio_weight: Some(10), ..none() }),
        ];
        for (args, expected) in cases {
            assert_eq!(parse(args).unwrap(), expected, "{args:?}");
        }
    }

    #[test]
    fn bad_values_name_flag_value_and_an_example() {
        let cases: [(&str, &[&str], &str); 8] = [
            ("--memory", &["5m", "", "x", "-1", "9e18", "16777215t"], "m"),
            ("--memory-swap", &["-2", "", "x", "16777215t"], "1g"),
            ("--memory-reservation", &["0", "", "-5"], "m"),
            ("--cpus", &["-1", "1000000", "nan", "inf", "", "a", "0.001"], "0.5"),
            ("--cpu-shares", &["1", "262145", "-3", "", "x"], "512"),
            ("--cpuset-cpus", &["", "a", "3-1", "1-", "-1", "0,,1", "9999", "+1", "0-1-2"], "0-2,4"),
            ("--pids-limit", &["-2", "", "many", "9223372036854775808"], "100"),
            ("--blkio-weight", &["9", "1001", "65536", "-10", ""], "250"),
        ];
        for (flag, values, example) in cases {
            for value in values {
                let error = parse(&[&format!("{flag}={value}")]).unwrap_err();
                assert!(
                    error.contains(flag) && error.contains(value) && error.contains(example),
                    "{flag}={value}: {error}"
                );
            }
        }
    }
}
