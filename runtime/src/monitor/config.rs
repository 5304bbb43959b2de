//! What the monitor is told ([`Config`], `monitor.json`) and what it tells ([`Status`], `status.json`).

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Name of the empty file in the container's state directory that tells the monitor a person asked
/// for the stop, so no restart policy applies.
pub const STOP_REQUESTED: &str = "stop-requested";

/// Everything the monitor needs to look after one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The container's id; also the sandbox's.
    pub id: String,
    /// The container's name and image reference, for the event journal.
    pub name: String,
    /// The image reference, for the event journal.
    pub image: String,
    /// The OCI bundle, which is the container's data directory.
    pub bundle: PathBuf,
    /// Root of the sandbox states (`berth-oci --root`).
    pub sandboxes: PathBuf,
    /// The container's volatile directory with its `lock` and `attach.sock`.
    pub state_dir: PathBuf,
    /// The event journal.
    pub events: PathBuf,
    /// Whether the process has a terminal (`-t`).
    pub tty: bool,
    /// Whether standard input stays open (`-i`).
    pub interactive: bool,
    /// What happens after the process has ended.
    pub restart: RestartPolicy,
    /// Removed in this order when the container has ended for good (`--rm`); empty: it is kept.
    pub remove: Vec<PathBuf>,
}

/// What happens after the container's process has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// Start again after a non-zero exit code.
    OnFailure {
        /// At most this many times; `None` is without limit.
        max_retries: Option<u32>,
    },
    /// Start again whatever the exit code.
    Always,
    /// As [`RestartPolicy::Always`]; also after a reboot of the host, unless a person had stopped it.
    UnlessStopped,
}

/// Where in its life a container is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Made, never started.
    #[default]
    Created,
    /// Its process runs (it may be paused: ask the cgroup).
    Running,
    /// Its process has ended and the restart policy's delay runs.
    Restarting,
    /// Its process has ended.
    Exited,
}

/// What is known of a container's process. Written by rename, by the monitor alone while it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where in its life the container is.
    pub phase: Phase,
    /// The process's id on the host while it runs.
    pub pid: Option<i32>,
    /// The monitor's process id while it lives.
    pub monitor_pid: Option<i32>,
    /// When the process was last started.
    pub started_at: Option<Timestamp>,
    /// When the process last ended.
    pub finished_at: Option<Timestamp>,
    /// The last exit code; 128+n for signal n.
    pub exit_code: Option<i32>,
    /// Whether the kernel ended a process of it for want of memory.
    pub oom_killed: bool,
    /// How often the restart policy has started it again.
    pub restart_count: u32,
    /// Why it could not be started, or was given up.
    pub error: Option<String>,
}
