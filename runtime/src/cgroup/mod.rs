//! The sandbox's control group: made, limited, entered, measured, killed and removed, on cgroup v1, v2 and the hybrid of both.
//!
//! A [`CgroupManager`] is a path (`/berth/ID`) and nothing else, so any process can go on where another stopped. On v1
//! and hybrid hosts the path exists once in each hierarchy. Where there is a v2 hierarchy, even one without controllers,
//! it is what processes are listed, frozen and killed by: only v2 can kill frozen processes and a whole tree at once.
//!
//! `cgroups-rs` finds the hierarchies and drives the v1 freezer. Values are written straight to the controllers' files:
//! the crate knows neither device programs nor `cgroup.events`, and its errors do not say which value was
//! refused by which file.
//!
//! # Entering
//!
//! Writing a process id to `cgroup.procs` takes a lock that every `fork` and `exit` on the machine holds for reading, and on a
//! quiet machine the kernel waits for an RCU grace period to get it: 4 to 20 ms measured. Two ways avoid it, and
//! [`Entry`] is both: a process is *born* in its v2 group (`CLONE_INTO_CGROUP`), and moves *itself* by
//! writing `0` to v1's `tasks`; together 0.1 ms.
//!
//! Start reading at [`CgroupManager`]; [`LinuxResources`](oci_spec::runtime::LinuxResources) are applied in `resources`.

mod device_program;
mod devices;
mod entry;
mod error;
mod file;
mod hierarchies;
mod path;
mod processes;
mod resources;
mod stats;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use devices::DEFAULT_DEVICES;
pub use entry::Entry;
pub use error::{Error, Result, Warning};
pub use stats::{BlockIo, Cpu, Memory, Pids, Stats};

use file::write;
use hierarchies::{Controller, Hierarchies};

/// How long a group may take to become empty, frozen or thawed after it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// One control group, on whatever hierarchies the host has. It need not exist.
#[derive(Debug, Clone)]
pub struct CgroupManager {
    hierarchies: Hierarchies,
    /// Relative to each hierarchy's mount point, without leading slash.
    path: PathBuf,
}

impl CgroupManager {
    /// The group at `cgroups_path`, as in `linux.cgroupsPath` of the OCI configuration: a path under the mount point of each
    /// hierarchy (`/berth/ID`), or systemd's `slice:prefix:name`, which stands for the path of `prefix-name.scope`
    /// in that slice.
    pub fn new(cgroups_path: &str) -> Result<Self> {
        Ok(Self { hierarchies: Hierarchies::of_this_host()?.clone(), path: path::relative(cgroups_path)? })
    }

    /// Makes the group, and its ancestors where they are missing, in every hierarchy. On v2 every
    /// controller is enabled down to it. Nothing is left of a group that could not be made in full.
    ///
    /// A group left over empty is taken over; one with processes in it is [`Error::InUse`].
    pub fn create(&self) -> Result<()> {
        self.create_everywhere().inspect_err(|error| {
            if !matches!(error, Error::InUse { .. }) {
                // The error that counts is the first one.
                let _ = self.delete();
            }
        })
    }

    fn create_everywhere(&self) -> Result<()> {
        for dir in self.dirs() {
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == ErrorKind::NotFound => std::fs::create_dir_all(&dir),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let pids = processes::pids(&dir);
                    if !pids.is_empty() {
                        return Err(Error::InUse { path: dir, pids });
                    }
                    Ok(())
                }
                made => made,
            }
            .map_err(|source| Error::Create { path: dir, source })?;
        }
        if let Controller::V1(cpuset) = self.controller("cpuset") {
            v1::inherit_cpuset(&cpuset)?;
        }
        if let (true, Some(v2)) = (self.hierarchies.v1.is_empty(), &self.hierarchies.v2) {
            v2::enable_controllers(&v2.point, &self.path, None)?;
        }
        Ok(())
    }

    /// Opens what a process needs to enter the group.
    pub fn entry(&self) -> Result<Entry> {
        Entry::open(&self.hierarchies, &self.path)
    }

    /// Moves the running process `pid` into the group, with all its threads. Slow on a quiet machine (see the
    /// [module](self)): for processes yet to be made there is [`CgroupManager::entry`].
    pub fn add(&self, pid: i32) -> Result<()> {
        self.dirs().try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Whether the group, or a part of it, exists.
    pub fn exists(&self) -> bool {
        self.dirs().any(|dir| dir.exists())
    }

    /// Removes the group and all below it from every hierarchy. Its parent stays. That it is gone already is no error.
    ///
    /// Processes that are just ending are waited for, for up to ten seconds; then they are [`Error::InUse`].
    pub fn delete(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        self.dirs().try_for_each(|dir| remove(&dir, deadline))
    }

    /// This group's directory in each hierarchy.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.points().map(|point| point.join(&self.path))
    }

    /// Where the controller `name` is for this group.
    fn controller(&self, name: &str) -> Controller {
        self.hierarchies.controller(name, &self.path)
    }

    /// The directory by which processes are listed, frozen and killed.
    fn main_dir(&self) -> PathBuf {
        self.hierarchies.main_point().join(&self.path)
    }
}

/// Removes a group's directory and those below it. The files in it are not removed, they go with it.
fn remove(dir: &Path, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(Error::Remove { path: dir.to_owned(), source: error });
            }
            Err(_) => {}
        }
        for child in file::subdirectories(dir) {
            remove(&child, deadline)?;
        }
        // A killed process leaves its group some time after the signal.
        if Instant::now() > deadline {
            return Err(Error::InUse { path: dir.to_owned(), pids: processes::pids(dir) });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
