//! One sandbox from its creation to its deletion. Any process with the right to can load it by its id and act on it;
//! nothing has to keep running for it.
//!
//! ```text
//!   create ──▶ created ──start──▶ running ◀──pause/resume──▶ paused
//!                 │                  │                          │
//!                 └────── the process ends, or is killed ───────┘
//!                                    ▼
//!                                 stopped ──delete──▶ gone
//! ```

mod channel;
mod console;
mod create;
mod exec;
mod hooks;
mod id_map;
mod init;
mod init_process;
mod inside;
mod namespace;
pub mod process;
mod rootfs;
mod signals;
mod state;
mod stdio;
mod user;

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::unistd::Pid;
use oci_spec::runtime::{ContainerState, LinuxResources};
use serde_json::json;

use crate::cgroup::{CgroupManager, Stats};
use crate::error::{Attempt as _, Error, Result};
use channel::Channel;
pub use console::{Pty, copy_size, open_pty, resize, send_master, size};
pub use create::{Made, Options, create};
pub use exec::{ExecOptions, Executed, exec};
pub use signals::is_deaf_to;
pub use state::State;
pub(crate) use state::write_json;
use state::{StateDir, process_start};
pub use stdio::Stdio;

/// A sandbox that exists.
#[derive(Debug, Clone)]
pub struct Sandbox {
    directory: StateDir,
    state: State,
}

impl Sandbox {
    /// The sandbox `id` below `root`.
    pub fn load(root: &Path, id: &str) -> Result<Self> {
        let directory = StateDir::new(root, id)?;
        let state = directory.read()?;
        Ok(Self { directory, state })
    }

    /// The ids of all sandboxes below `root`.
    pub fn list(root: &Path) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.attempt(|| format!("list {}", root.display()))?,
        };
        let mut ids: Vec<String> =
            entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
        ids.sort();
        Ok(ids)
    }

    fn from_parts(directory: StateDir, state: State) -> Self {
        Self { directory, state }
    }

    /// What is kept of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The first process, as long as it runs.
    pub fn pid(&self) -> Option<i32> {
        self.state.pid.filter(|&pid| process_start(pid) == Some(self.state.pid_start))
    }

    /// Where in its life it is. A paused one counts as running in the OCI specification.
    pub fn status(&self) -> ContainerState {
        match (self.state.pid, self.pid()) {
            (None, _) => ContainerState::Creating,
            (_, None) => ContainerState::Stopped,
            _ if self.directory.start_socket().exists() => ContainerState::Created,
            _ => ContainerState::Running,
        }
    }

    /// The state as the OCI runtime specification has it ("State"), JSON.
    pub fn oci_state(&self) -> Result<serde_json::Value> {
        let mut status = self.status().to_string();
        if status == "running" && self.is_paused()? {
            "paused".clone_into(&mut status);
        }
        let text = oci_state(&self.state, self.pid().unwrap_or_default(), &status);
        serde_json::from_slice(&text).map_err(|error| Error::Invalid(error.to_string()))
    }

    /// Lets the created process go on to the image's process; comes back when that runs.
    pub fn start(&self) -> Result<()> {
        let _lock = self.directory.lock()?;
        let id = &self.state.id;
        let status = self.status();
        if status != ContainerState::Created {
            return Err(Error::Invalid(format!("cannot start container `{id}`: it is {status}, not created")));
        }
        let path = self.directory.start_socket();
        let connection = connect_socket(&path).attempt(|| format!("start container `{id}`"))?;
        // Gone before the process runs: from now on it counts as running.
        std::fs::remove_file(&path).attempt(|| format!("remove {}", path.display()))?;
        Channel::from_fd(connection.into()).wait_for_exec()?;
        let spec = crate::bundle::Bundle::load(&self.state.bundle)?.spec;
        let poststart = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().clone()).unwrap_or_default();
        hooks::run("poststart", &poststart, &oci_state(&self.state, self.pid().unwrap_or_default(), "running"))
    }

    /// Sends a signal to the first process, or to all.
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let id = &self.state.id;
        let attempt = || format!("send signal {signal} to container `{id}`");
        if all {
            for pid in self.cgroup()?.pids() {
                // SAFETY: `kill` takes two integers; a process that has ended meanwhile is no error.
                unsafe { libc::kill(pid, signal) };
            }
            return Ok(());
        }
        let Some(pid) = self.pid() else {
            return Err(Error::Invalid(format!("container `{id}` is not running")));
        };
        let pidfd = open_pidfd(pid).attempt(attempt)?;
        // The id may have been given to another process before the descriptor was opened: look again.
        if self.pid() != Some(pid) {
            return Err(Error::Invalid(format!("container `{id}` is not running")));
        }
        // SAFETY: a descriptor, two integers and no `siginfo`.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::c_void>(), 0)
        };
        Errno::result(result).attempt(attempt)?;
        // Without a pid namespace the end of the first process is nobody else's end.
        if signal == libc::SIGKILL && !self.state.own_pid_namespace {
            self.cgroup()?.kill_all()?;
        }
        Ok(())
    }

    /// Freezes all processes.
    pub fn pause(&self) -> Result<()> {
        self.expect_running("pause")?;
        Ok(self.cgroup()?.freeze()?)
    }

    /// Lets frozen processes go on.
    pub fn resume(&self) -> Result<()> {
        self.expect_running("resume")?;
        Ok(self.cgroup()?.thaw()?)
    }

    fn expect_running(&self, what: &str) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        Err(Error::Invalid(format!("cannot {what} container `{}`: it is {}", self.state.id, self.status())))
    }

    /// Whether its processes are frozen.
    pub fn is_paused(&self) -> Result<bool> {
        Ok(self.cgroup()?.is_frozen()?)
    }

    /// What its processes have used.
    pub fn stats(&self) -> Result<Stats> {
        Ok(self.cgroup()?.stats()?)
    }

    /// How often the kernel has ended a process of it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.cgroup().map_or(0, |cgroup| cgroup.oom_kills())
    }

    /// Changes the limits that are mentioned.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.cgroup()?.update(resources)?;
        Ok(())
    }

    /// The ids of all its processes, as the host counts.
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(self.cgroup()?.pids())
    }

    /// Removes everything that is kept of it. `force`: running processes are killed first; otherwise it has to be stopped.
    pub fn delete(&self, force: bool) -> Result<()> {
        let Some(_lock) = self.lock_for_deletion()? else { return Ok(()) };
        let status = self.status();
        if !force && !matches!(status, ContainerState::Stopped) {
            return Err(Error::Invalid(format!(
                "cannot delete container `{}`: it is {status}; stop it first or use --force",
                self.state.id
            )));
        }
        let cgroup = self.cgroup()?;
        cgroup.kill_all()?;
        if !self.state.own_pid_namespace
            && let Some(pid) = self.pid()
        {
            // SAFETY: `kill` takes two integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        cgroup.delete()?;
        self.directory.remove()?;
        hooks::run("poststop", &self.state.poststop, &oci_state(&self.state, 0, "stopped"))
    }

    /// The lock, or nothing when somebody else has deleted the sandbox meanwhile.
    fn lock_for_deletion(&self) -> Result<Option<Flock<File>>> {
        match self.directory.lock() {
            Err(Error::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn cgroup(&self) -> Result<CgroupManager> {
        Ok(CgroupManager::new(&self.state.cgroups_path)?)
    }
}

/// The state of a sandbox as hooks and `state` show it.
fn oci_state(state: &State, pid: i32, status: &str) -> Vec<u8> {
    let value = json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "status": status,
        "pid": pid,
        "bundle": state.bundle,
        "annotations": state.annotations,
        "created": state.created,
    });
    value.to_string().into_bytes()
}

fn open_pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: `pidfd_open` takes two integers; a descriptor it returns is new and ours.
    unsafe {
        let raw = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(raw as i32))
    }
}

/// The process that a pidfd means, as this process counts (`pidfd_open(2)`, the `Pid` of its `fdinfo`).
fn pid_of(pidfd: &OwnedFd) -> Result<Pid> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).attempt(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .map(Pid::from_raw)
        .ok_or_else(|| Error::Invalid(String::from("the first process of the sandbox ended as it was made")))
}

/// Runs `action` with a path to `socket` that fits into a socket address (108 bytes, `unix(7)`), however deep the directory.
fn with_short_path<T>(socket: &Path, action: impl Fn(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let directory = File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    action(&Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

/// A file, open for executing it, through a clone of its mount that is attached nowhere and read-only.
pub fn read_only_file(path: &Path) -> Result<OwnedFd> {
    let file =
        rustix::fs::open(path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .attempt(|| format!("open {}", path.display()))?;
    rootfs::read_only_copy(file)
}

/// Listens on a socket in the file system.
pub(crate) fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    with_short_path(path, |short| UnixListener::bind(short))
}

/// Connects to a socket in the file system, however long its path is.
pub fn connect_socket(path: &Path) -> std::io::Result<UnixStream> {
    with_short_path(path, |short| UnixStream::connect(short))
}
