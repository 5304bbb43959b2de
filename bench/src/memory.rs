//! What an instance takes: the proportional set sizes of all its processes.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use berth_engine::Container;

use crate::document::Memory;
use crate::error::Result;
use crate::room::Room;

/// Of a running instance: its monitor and all that comes from it.
pub fn of(room: &Room<'_>, id: &str) -> Result<Memory> {
    let processes = family(&roots(room, id)?, &parents());
    Ok(Memory { pss: processes.iter().map(|&pid| pss(pid)).sum(), processes: processes.len() })
}

/// Of several, together. A process is counted once.
pub fn of_all(room: &Room<'_>, ids: &[String]) -> Result<u64> {
    let roots: Vec<_> = ids.iter().map(|id| roots(room, id)).collect::<Result<_>>()?;
    Ok(family(&roots.concat(), &parents()).into_iter().map(pss).sum())
}

/// The processes that all others of an instance come from.
fn roots(room: &Room<'_>, id: &str) -> Result<Vec<i32>> {
    let status = Container::load(room.roots, id)?.status()?;
    Ok(status.monitor_pid.into_iter().chain(status.pid).collect())
}

/// The parent of each process (`proc_pid_stat(5)`).
fn parents() -> HashMap<i32, i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

/// The roots and all their descendants.
fn family(roots: &[i32], parents: &HashMap<i32, i32>) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = roots.iter().copied().collect();
    loop {
        let before = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(*parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

/// Bytes of memory of a process, of shared pages its share (`proc_pid_smaps(5)`).
fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_belong_to_the_family() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]);
        assert_eq!(family(&[2, 6], &parents), [2, 3, 4, 6].into());
    }

    #[test]
    fn this_process_takes_memory() {
        assert!(pss(std::process::id().cast_signed()) > 0);
        assert_eq!(pss(-1), 0);
    }
}
