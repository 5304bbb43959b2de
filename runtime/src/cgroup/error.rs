//! What can go wrong with a control group.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on a control group failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A `cgroupsPath` that is none.
    #[error("invalid cgroups path '{path}': {reason}; use a path such as /berth/NAME or slice:prefix:name")]
    Path {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host has no cgroup hierarchy mounted.
    #[error("no cgroup hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`")]
    NoHierarchy,
    /// `mkdir` failed.
    #[error("cannot create cgroup {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are processes where none may be.
    #[error("cgroup {} has processes in it ({}); kill them first", path.display(), list(pids))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Some or all of the processes.
        pids: Vec<i32>,
    },
    /// `rmdir` failed.
    #[error("cannot remove cgroup {}: {source}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the group could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the group refused a value.
    #[error("cannot write '{value}' to {}: {source}{}", path.display(), advice(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A limit this host has no controller for.
    #[error(
        "cannot set {limit}: this host has no {controller} cgroup controller, or one without it; run without this limit"
    )]
    Unsupported {
        /// The controller.
        controller: &'static str,
        /// The limit, as the OCI configuration calls it.
        limit: String,
    },
    /// A limit whose value makes no sense.
    #[error("invalid {limit}: {reason}")]
    Invalid {
        /// The limit, as the OCI configuration calls it.
        limit: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A `bpf(2)` call failed.
    #[error("cannot {action} the device program of cgroup {}: {source}; it needs CAP_BPF, CAP_NET_ADMIN and CONFIG_CGROUP_BPF", path.display())]
    DeviceProgram {
        /// What was attempted.
        action: &'static str,
        /// The group's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group did not become empty, frozen or thawed in time.
    #[error("cgroup {} is not {state} after {} s", path.display(), super::PATIENCE.as_secs())]
    Timeout {
        /// The group's directory.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
    },
    /// The v1 freezer refused.
    #[error("cannot {action} cgroup {}: {source}", path.display())]
    Freezer {
        /// What was attempted.
        action: &'static str,
        /// The group's directory.
        path: PathBuf,
        /// Why.
        source: cgroups_rs::fs::error::Error,
    },
}

/// What a file takes, where it refused a value.
fn advice(path: &Path, source: &io::Error) -> String {
    if !matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ERANGE | libc::EACCES)) {
        return String::new();
    }
    let online = |what, file| match std::fs::read_to_string(file) {
        Ok(online) => format!("; this host has the {what} {}", online.trim()),
        Err(_) => String::new(),
    };
    match path.file_name().and_then(OsStr::to_str) {
        Some("cpuset.cpus") => online("CPUs", "/sys/devices/system/cpu/online"),
        Some("cpuset.mems") => online("memory nodes", "/sys/devices/system/node/online"),
        // PID_MAX_LIMIT of 64-bit kernels, see proc_sys_kernel(5).
        Some("pids.max") => String::from("; the most is 4194304"),
        _ => String::new(),
    }
}

fn list(pids: &[i32]) -> String {
    let shown: Vec<_> = pids.iter().take(5).map(ToString::to_string).collect();
    let more = if pids.len() > 5 { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// A wish that was left out without harm: what it asks for does not exist on this host, or no longer anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    /// The limit, as the OCI configuration calls it.
    pub limit: &'static str,
    /// Why it was left out.
    pub reason: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is ignored: {}", self.limit, self.reason)
    }
}
