//! What is set up once, when the host has said what the machine is to be, and what is taken down at its end.

use std::fs;
use std::path::{Path, PathBuf};

use berth_runtime::error::{Attempt as _, Result};
use berth_vmm::guest::start::{GuestFile, GuestMount, Machine};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::network;
use crate::root::{CGROUPS, disk, mount_at};

/// Options of `mount(8)` that are flags of `mount(2)`.
const FLAGS: [(&str, MsFlags); 8] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("noatime", MsFlags::MS_NOATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("sync", MsFlags::MS_SYNCHRONOUS),
];
/// Options that say what is so anyway, or that only mean something between mount namespaces.
const WITHOUT_EFFECT: [&str; 9] =
    ["rw", "suid", "dev", "exec", "private", "rprivate", "tmpcopyup", "defaults", "async"];

/// Sets it up. The error is for a person to read.
pub fn set_up(machine: &Machine) -> Result<(), String> {
    prepare(machine).map_err(|error| error.to_string())
}

fn prepare(machine: &Machine) -> Result<()> {
    if let Some(name) = &machine.hostname {
        nix::unistd::sethostname(name).attempt(|| format!("set the host name to {name}"))?;
    }
    network::up(machine.network.as_ref())?;
    machine.files.iter().try_for_each(write)?;
    machine.mounts.iter().try_for_each(mount_one)?;
    machine.tasks.map_or(Ok(()), limit_tasks)?;
    if machine.is_read_only {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).attempt(|| "make the root filesystem read-only")?;
    }
    Ok(())
}

/// Puts this process, and so all that follow, into a control group with at most that many others.
fn limit_tasks(count: u32) -> Result<()> {
    let attempt = || format!("limit the guest to {count} processes");
    let group = Path::new(CGROUPS).join("guest");
    fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+pids").attempt(attempt)?;
    fs::create_dir(&group).attempt(attempt)?;
    fs::write(group.join("pids.max"), (u64::from(count) + 1).to_string()).attempt(attempt)?;
    fs::write(group.join("cgroup.procs"), "0").attempt(attempt)?;
    // As in a container, its root must not lift the limit.
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | closed;
    mount(None::<&str>, CGROUPS, None::<&str>, flags, None::<&str>).attempt(attempt)
}

/// Replaces whatever the image has there.
fn write(file: &GuestFile) -> Result<()> {
    let attempt = || format!("write {}", file.path.display());
    if let Some(parent) = file.path.parent() {
        fs::create_dir_all(parent).attempt(attempt)?;
    }
    match fs::remove_file(&file.path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).attempt(attempt),
        _ => {}
    }
    fs::write(&file.path, &file.content).attempt(attempt)
}

fn mount_one(wanted: &GuestMount) -> Result<()> {
    let source = wanted.disk.as_deref().map_or_else(|| Ok(wanted.kind.clone()), disk)?;
    let (flags, data) = options(&wanted.options);
    mount_at(&source, &wanted.destination, &wanted.kind, flags, &data)
}

/// Flags, and what is left for the filesystem.
fn options(all: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in all {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= *flag,
            None if WITHOUT_EFFECT.contains(&option.as_str()) => {}
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// Ends every other process and takes leave of the disks, so that what was written is on them.
pub fn take_down() {
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while waitpid(None, None) != Err(Errno::ECHILD) {}
    for place in disks_in_use(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()).iter().rev() {
        if let Err(errno) = umount(place.as_path()) {
            eprintln!("berth-guest-init: cannot unmount {}: {errno}", place.display());
        }
    }
    nix::unistd::sync();
}

/// Where disks are mounted.
fn disks_in_use(mounts: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut words = line.split(' ');
        let is_disk = words.next()?.starts_with("/dev/");
        // What is at the front of a path below the initramfs cannot be reached any more.
        let place = words.next()?.replace("\\040", " ");
        (is_disk && Path::new(&place).is_absolute()).then(|| PathBuf::from(place))
    };
    mounts.lines().filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parted() {
        let all = ["ro", "nosuid", "size=64k", "rw", "mode=1777"].map(str::to_owned);
        assert_eq!(options(&all), (MsFlags::MS_RDONLY | MsFlags::MS_NOSUID, "size=64k,mode=1777".to_owned()));
    }

    #[test]
    fn disks_are_found_among_the_mounts() {
        let text = "overlay / overlay rw 0 0\n/dev/vdb /my\\040data ext4 rw 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(disks_in_use(text), [PathBuf::from("/my data")]);
    }
}
