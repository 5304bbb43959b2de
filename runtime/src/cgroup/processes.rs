//! The processes of a group: listed, frozen, killed.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::FreezerState;
use cgroups_rs::fs::freezer::FreezerController;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hierarchies::Controller;
use super::{CgroupManager, Error, PATIENCE, Result, file, write};

impl CgroupManager {
    /// Every process in the group and below it; none if it does not exist. A moment later it may be others.
    pub fn pids(&self) -> Vec<i32> {
        pids(&self.main_dir())
    }

    /// Stops every process of the group where it is, and returns when all have stopped.
    pub fn freeze(&self) -> Result<()> {
        match self.freezer() {
            Freezer::V2(dir) => {
                write(&dir.join("cgroup.freeze"), "1")?;
                // A group with a thread of the kernel in it, such as KVM makes for a VM before Linux 6.14, never counts as
                // frozen, though its processes stop all the same.
                if pids(&dir).into_iter().any(is_kernel_thread) {
                    return Ok(());
                }
                wait_for(&dir, "frozen 1", "frozen")
            }
            Freezer::V1(dir) => freeze_v1(&dir).inspect_err(|_| {
                // Half frozen helps nobody.
                let _ = controller(&dir).thaw();
            }),
        }
    }

    /// Lets the processes of the group go on.
    pub fn thaw(&self) -> Result<()> {
        match self.freezer() {
            Freezer::V2(dir) => {
                write(&dir.join("cgroup.freeze"), "0")?;
                wait_for(&dir, "frozen 0", "thawed")
            }
            Freezer::V1(dir) => {
                controller(&dir).thaw().map_err(|source| Error::Freezer { action: "thaw", path: dir, source })
            }
        }
    }

    /// Whether the group has been frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.freezer() {
            Freezer::V2(dir) => Ok(file::read(&dir.join("cgroup.freeze"))? == "1"),
            Freezer::V1(dir) => match controller(&dir).state() {
                Ok(state) => Ok(!matches!(state, FreezerState::Thawed)),
                Err(source) => Err(Error::Freezer { action: "read the freezer of", path: dir, source }),
            },
        }
    }

    /// Kills every process in the group and below it, also frozen ones, and returns when the last is gone. None may be left
    /// to begin with.
    pub fn kill_all(&self) -> Result<()> {
        let dir = self.main_dir();
        if !dir.exists() {
            return Ok(());
        }
        match file::try_write(&dir.join("cgroup.kill"), "1") {
            Ok(()) => wait_for(&dir, "populated 0", "empty"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.kill_one_by_one(),
            Err(source) => Err(Error::Write { path: dir.join("cgroup.kill"), value: "1".to_owned(), source }),
        }
    }

    /// Without `cgroup.kill` (v1, and v2 before Linux 5.14): nothing forks while it is frozen, so a frozen group is
    /// killed whole. A group that will not freeze is killed round by round.
    fn kill_one_by_one(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(100);
        loop {
            let frozen = self.freeze();
            let pids = self.pids();
            for pid in &pids {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if frozen.is_ok() {
                self.thaw()?;
            }
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout { path: self.main_dir(), state: "empty" });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn freezer(&self) -> Freezer {
        match (&self.hierarchies.v2, self.controller("freezer")) {
            (None, Controller::V1(dir)) => Freezer::V1(dir),
            _ => Freezer::V2(self.main_dir()),
        }
    }
}

/// By what the group is frozen.
enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

fn controller(dir: &Path) -> FreezerController {
    FreezerController::new(dir.to_owned(), PathBuf::new(), false)
}

/// v1 freezes what it can reach at once; the rest needs to be asked again.
fn freeze_v1(dir: &Path) -> Result<()> {
    let freezer = controller(dir);
    let failed = |source| Error::Freezer { action: "freeze", path: dir.to_owned(), source };
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(50);
    while Instant::now() < deadline {
        freezer.freeze().map_err(failed)?;
        if matches!(freezer.state().map_err(failed)?, FreezerState::Frozen) {
            return Ok(());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Err(Error::Timeout { path: dir.to_owned(), state: "frozen" })
}

/// Waits until `cgroup.events` has the line `event`. The kernel says by poll(2) when it has changed.
fn wait_for(dir: &Path, event: &str, state: &'static str) -> Result<()> {
    let path = dir.join("cgroup.events");
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut events = File::open(&path).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut content = String::new();
        events.rewind().map_err(failed)?;
        events.read_to_string(&mut content).map_err(failed)?;
        if content.lines().any(|line| line == event) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { path: dir.to_owned(), state });
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Whether it is a thread of the kernel: `PF_KTHREAD` among the flags in `proc_pid_stat(5)`.
fn is_kernel_thread(pid: i32) -> bool {
    let stat = file::try_read(&PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    // The name, in parentheses, may contain anything.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & 0x0020_0000 != 0)
}

/// The processes in the group `dir` and below it. In a threaded group the kernel shows them further up.
pub(super) fn pids(dir: &Path) -> Vec<i32> {
    let procs = file::try_read(&dir.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<i32> = procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for child in file::subdirectories(dir) {
        all.extend(pids(&child));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_threads_are_told_from_processes() {
        assert!(!is_kernel_thread(std::process::id() as i32));
        assert!(!is_kernel_thread(i32::MAX));
        // The kernel's own parent of all its threads, where this process can see it (`pid_namespaces(7)`).
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            assert!(is_kernel_thread(2));
        }
    }
}
