//! What the kernel was told of a container's limits, read on the host, whatever the layout of cgroups is here.

use std::fs;
use std::path::{Path, PathBuf};

/// The value of a cgroup file of the process `pid`: `v1` where `controller` is in a v1 hierarchy, else `v2`.
pub fn read(pid: i64, controller: &str, v1: &str, v2: &str) -> String {
    let (folder, is_v1) = folder(pid, controller);
    let path = folder.join(if is_v1 { v1 } else { v2 });
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    text.trim().to_owned()
}

/// Whether the kernel has a cgroup file of this name in any hierarchy for `controller`.
pub fn knows(pid: i64, controller: &str, files: &[&str]) -> bool {
    let (folder, _) = folder(pid, controller);
    files.iter().any(|file| folder.join(file).exists())
}

/// The cgroup of `pid` for `controller`, and whether that is v1.
fn folder(pid: i64, controller: &str) -> (PathBuf, bool) {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process lives");
    let root = Path::new("/sys/fs/cgroup");
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(names), Some(path)) = (fields.next(), fields.next())
            && names.split(',').any(|name| name == controller)
        {
            return (root.join(controller).join(path.trim_start_matches('/')), true);
        }
    }
    let path = table.lines().find_map(|line| line.strip_prefix("0::/")).expect("a v2 hierarchy");
    (root.join(path), false)
}

/// How often the kernel has made the processes of a container wait for CPU time.
pub fn throttled(pid: i64) -> u64 {
    let stat = read(pid, "cpu", "cpu.stat", "cpu.stat");
    let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no nr_throttled in {stat}"))
}
