//! The processes of a container, as the host sees them (`proc_pid_stat(5)`).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use berth_runtime::error::misleads;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::container::Container;
use crate::error::{Attempt as _, Error, Result};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub struct Process {
    /// Effective user id on the host.
    pub uid: u32,
    /// Process id on the host.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Per cent of one core over its life.
    pub c: u64,
    /// When it was started: the time of today, or the day.
    pub stime: String,
    /// Its terminal, `?` for none.
    pub tty: String,
    /// Processor time used.
    pub time: String,
    /// The command line.
    pub cmd: String,
}

/// Lists the processes of a running container, the oldest first.
pub fn processes(container: &Container) -> Result<Vec<Process>> {
    let mut pids = container.running_sandbox()?.processes()?;
    pids.sort_unstable();
    let uptime = uptime()?;
    // A process may have ended since it was listed.
    Ok(pids.into_iter().filter_map(|pid| describe(pid, uptime)).collect())
}

/// How long the host has been up (`proc_uptime(5)`).
fn uptime() -> Result<Duration> {
    let text = fs::read_to_string("/proc/uptime").attempt(|| "read /proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.map(Duration::from_secs_f64).ok_or_else(|| Error::Invalid("/proc/uptime is not readable".to_owned()))
}

fn describe(pid: i32, uptime: Duration) -> Option<Process> {
    let dir = format!("/proc/{pid}");
    let uid = fs::metadata(&dir).ok()?.uid();
    let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
    let arguments = fs::read(format!("{dir}/cmdline")).ok()?;
    // SAFETY: `sysconf` reads a constant of the system.
    let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    parse(pid, uid, &stat, &arguments, uptime, ticks.max(1))
}

fn parse(pid: i32, uid: u32, stat: &str, arguments: &[u8], uptime: Duration, ticks: u64) -> Option<Process> {
    // The name may hold anything, parentheses too: the last one closes it.
    let (begin, rest) = stat.rsplit_once(')')?;
    let name = begin.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields are counted from 1 in the manual; the state, field 3, is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
    let used = (field(14)? + field(15)?).max(0) as u64 / ticks;
    let started = Duration::from_millis(field(22)?.max(0) as u64 * 1000 / ticks);
    let age = uptime.saturating_sub(started);
    Some(Process {
        uid,
        pid,
        ppid: field(4)?.try_into().ok()?,
        c: (used * 100).checked_div(age.as_secs()).unwrap_or_default(),
        stime: start_time(age),
        tty: terminal(field(7)?),
        time: format!("{:02}:{:02}:{:02}", used / 3600, used / 60 % 60, used % 60),
        cmd: command(arguments, name),
    })
}

fn start_time(age: Duration) -> String {
    let now = Timestamp::now();
    let started = SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(now);
    let started = started.to_zoned(TimeZone::system());
    let today = now.to_zoned(TimeZone::system()).date() == started.date();
    started.strftime(if today { "%H:%M" } else { "%b%d" }).to_string()
}

/// The name of a terminal by its device number; pseudo-terminals have the major numbers 136 to 143.
fn terminal(device: i64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

/// The command line on one line, or the name in brackets where there is none.
fn command(arguments: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(arguments);
    let text = text.trim_end_matches('\0').replace('\0', " ");
    let text = if text.is_empty() { format!("[{name}]") } else { text };
    text.chars().map(|c| if misleads(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described() {
        let stat = "42 (a) b) S 7 42 42 34817 42 0 0 0 0 0 250 50 0 0 20 0 1 0 6000 1 1";
        let process = parse(42, 1000, stat, b"sleep\0 100\n\0", Duration::from_secs(90), 100).unwrap();
        assert_eq!((process.pid, process.ppid, process.uid), (42, 7, 1000));
        assert_eq!((process.c, process.time.as_str(), process.tty.as_str()), (10, "00:00:03", "pts/1"));
        assert_eq!(process.cmd, "sleep  100?");
        assert_eq!(parse(42, 0, stat, b"", Duration::ZERO, 100).unwrap().cmd, "[a) b]");
    }

    #[test]
    fn nonsense_is_nothing() {
        for stat in ["", "1", "1 (x", "1 (x) S", "1 (x) S a b c d e f g h i j k l m n o p q r s t"] {
            assert!(parse(1, 0, stat, b"", Duration::ZERO, 100).is_none(), "{stat}");
        }
    }
}
