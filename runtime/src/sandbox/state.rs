//! `state.json`: what is known of one sandbox, so that any process can find, use and remove it.
//!
//! Written before anything is made (without a process id), and again by rename as soon as there is one, so a kill at
//! any instant leaves either nothing or a record from which `delete` can clean up.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use crate::bundle::read_json;
use crate::error::{Attempt as _, Error, Result};

/// The socket the created process waits on for its start; it exists exactly in that phase.
const START_SOCKET: &str = "start.sock";

/// What is kept of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the OCI runtime specification the bundle asked for.
    pub oci_version: String,
    /// The sandbox's id.
    pub id: String,
    /// The first process, as the host counts; none while it is being made.
    pub pid: Option<i32>,
    /// Field 22 of `/proc/PID/stat`, which tells a reused process id apart (`proc_pid_stat(5)`).
    pub pid_start: u64,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The control group, for `cgroup::CgroupManager::new`.
    pub cgroups_path: String,
    /// When it was made.
    pub created: Timestamp,
    /// The bundle's annotations.
    pub annotations: HashMap<String, String>,
    /// Whether the first process is process 1 of a namespace of its own, so that its end is everybody's end.
    pub own_pid_namespace: bool,
    /// Hooks to run after deletion.
    pub poststop: Vec<Hook>,
}

/// The directory of one sandbox below the root of all.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of `id` below `root`; the id is checked, since it becomes a path and a control group.
    pub fn new(root: &Path, id: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.chars().all(plain) {
            return Err(Error::Invalid(format!("`{id}` is no container id; use letters, digits and any of `_+-.`")));
        }
        Ok(Self(root.join(id)))
    }

    /// Makes the directory; the id must be free.
    pub fn create(&self, id: &str) -> Result<()> {
        if let Some(root) = self.0.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(root);
            made.attempt(|| format!("create {}", root.display()))?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::Exists { id: id.to_owned() }),
            other => other.attempt(|| format!("create {}", self.0.display())),
        }
    }

    /// Takes the sandbox's lock, so that two commands do not work on one sandbox at once.
    pub fn lock(&self) -> Result<Flock<File>> {
        let directory = File::open(&self.0).attempt(|| format!("open {}", self.0.display()))?;
        Flock::lock(directory, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .attempt(|| format!("lock {}", self.0.display()))
    }

    /// Reads `state.json`.
    pub fn read(&self) -> Result<State> {
        let path = self.0.join("state.json");
        if !self.0.exists() {
            let id = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::NotFound { id });
        }
        read_json(&path)
    }

    /// Writes `state.json` by rename.
    pub fn write(&self, state: &State) -> Result<()> {
        write_json(&self.0.join("state.json"), state)
    }

    /// The socket the created process waits on.
    pub fn start_socket(&self) -> PathBuf {
        self.0.join(START_SOCKET)
    }

    /// Removes the directory and everything in it; fine if it is gone.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).attempt(|| format!("remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a JSON file so that a reader sees the old text or the new one, never a part.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        fs::write(&temporary, serde_json::to_vec(value)?)?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary))).attempt(|| format!("write {}", path.display()))
}

/// When a process was started, in clock ticks since boot; `None` when there is no such process (any more).
pub(crate) fn process_start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold spaces and parentheses: count from the last one. A zombie has ended.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let phase = fields.next()?;
    if phase == "Z" || phase == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
