//! What may be left of containers on the host: processes, cgroups, mounts, files. Looks only for what carries
//! an id or the folder of one [`Home`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::home::Home;
use crate::wait;

/// How long the kernel and a monitor may take to tidy up after the last command has returned.
const GRACE: Duration = Duration::from_secs(15);

/// The ids of all containers that this home has, or has had: from its journal and its folders.
pub fn ids(home: &Home) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let journal = fs::read_to_string(home.state().join("events.jsonl")).unwrap_or_default();
    for word in journal.split(|c: char| !c.is_ascii_hexdigit()) {
        if word.len() == 64 {
            found.insert(word.to_owned());
        }
    }
    for folder in [home.data().join("containers"), home.state().join("containers"), home.state().join("sandboxes")] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

/// Insists that nothing is left of the containers `ids` and that no process of this home lives on.
pub fn expect_none(home: &Home, ids: &BTreeSet<String>) {
    let mut left = Vec::new();
    let clean = wait::within(GRACE, || {
        left = find(home, ids);
        left.is_empty()
    });
    if !clean {
        remove(home, ids);
        panic!("left behind:\n{}", left.join("\n"));
    }
}

/// Ends the processes and removes the cgroups and mounts that are left, so that one failure is not the next one's.
pub fn remove(home: &Home, ids: &BTreeSet<String>) {
    for pid in processes(home.path(), ids) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let gone = || processes(home.path(), ids).is_empty();
    wait::within(Duration::from_secs(5), gone);
    for mount in mounts(home.path(), ids).iter().rev() {
        let _ = nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH);
    }
    for cgroup in cgroups(ids).iter().rev() {
        let _ = fs::remove_dir(cgroup);
    }
}

/// Everything that is left, one line each.
fn find(home: &Home, ids: &BTreeSet<String>) -> Vec<String> {
    let mut left = Vec::new();
    for pid in processes(home.path(), ids) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        left.push(format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")));
    }
    left.extend(cgroups(ids).iter().map(|path| format!("cgroup {}", path.display())));
    left.extend(mounts(home.path(), ids).iter().map(|path| format!("mount {path}")));
    for folder in ["data/containers", "data/names", "data/images/ingest", "state/containers", "state/sandboxes"] {
        let entries = fs::read_dir(home.path().join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // Part of a blob is kept: the next pull of it goes on from there.
        let left_over = names.filter(|name| Path::new(name).extension().is_none_or(|kind| kind != "part"));
        left.extend(left_over.map(|name| format!("file {folder}/{name}")));
    }
    left
}

/// Processes that were started with the home's folder in their arguments or environment, or that are in a cgroup
/// with one of the ids; not this test itself.
fn processes(home: &Path, ids: &BTreeSet<String>) -> Vec<i32> {
    let home = home.to_string_lossy();
    let carries = |pid: i32| {
        let read = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        // A zombie has neither; its cgroup is still told.
        let state = read("stat");
        let zombie = state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
        !zombie
            && (read("cmdline").contains(&*home)
                || read("environ").contains(&*home)
                || ids.iter().any(|id| read("cgroup").contains(id.as_str())))
    };
    let me = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != me && carries(*pid)).collect()
}

/// Cgroups that have one of the ids in their name, parents first.
fn cgroups(ids: &BTreeSet<String>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Links such as `cpu -> cpu,cpuacct` are no folders of their own.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name();
                if ids.iter().any(|id| name.to_string_lossy().contains(id.as_str())) {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Mount points on the host under the home's folder, or with one of the ids in their path.
fn mounts(home: &Path, ids: &BTreeSet<String>) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = |point: &&str| Path::new(point).starts_with(home) || ids.iter().any(|id| point.contains(id.as_str()));
    points.filter(ours).map(str::to_owned).collect()
}
