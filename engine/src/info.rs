//! The host and what berth has on it.

use std::fs;
use std::path::Path;
use std::process::Command;

use berth_runtime::monitor::Phase;
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::error::{Attempt as _, Error, Result};
use crate::paths::Roots;
use crate::{launch, microvm, spec, volumes};

/// What `berth info` tells.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Info {
    /// berth's version.
    pub version: &'static str,
    /// All containers.
    pub containers: usize,
    /// Those that run, paused ones included.
    pub containers_running: usize,
    /// Those that do not run.
    pub containers_stopped: usize,
    /// Images, by name.
    pub images: usize,
    /// Volumes.
    pub volumes: usize,
    /// The data root.
    pub data_root: String,
    /// The state root.
    pub state_root: String,
    /// How layers are put together.
    pub driver: &'static str,
    /// `v1`, `v2` or `hybrid`.
    pub cgroup_version: &'static str,
    /// What the host runs on, `linux`.
    pub os: &'static str,
    /// The distribution.
    pub operating_system: String,
    /// The kernel's version.
    pub kernel_version: String,
    /// The processor's architecture.
    pub architecture: &'static str,
    /// The host's name.
    pub name: String,
    /// Processors.
    #[serde(rename = "NCPU")]
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// What the host offers to microVMs.
    #[serde(rename = "KVM")]
    pub kvm: Kvm,
}

/// How the host's KVM translates guest memory, and what that allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct Kvm {
    /// `ept`, `npt`, `shadow`, `pvm` or `none`.
    pub translation: String,
    /// Whether a Linux guest can run: `--isolation microvm`.
    #[serde(rename(serialize = "LinuxGuest"))]
    pub linux: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The most vCPUs of a guest.
    pub max_vcpus: usize,
}

/// Gathers what `berth info` tells; `images` is how many the store has.
pub fn info(roots: &Roots, images: usize) -> Result<Info> {
    let (containers, _) = Container::all(roots)?;
    let alive = |container: &&Container| {
        container.status().is_ok_and(|status| matches!(status.phase, Phase::Running | Phase::Restarting))
    };
    let running = containers.iter().filter(alive).count();
    let host = rustix::system::uname();
    Ok(Info {
        version: env!("CARGO_PKG_VERSION"),
        containers: containers.len(),
        containers_running: running,
        containers_stopped: containers.len() - running,
        images,
        volumes: volumes::Store::new(roots.data()).list()?.len(),
        data_root: roots.data().display().to_string(),
        state_root: roots.state().display().to_string(),
        driver: "overlay",
        cgroup_version: cgroup_version(Path::new("/sys/fs/cgroup")),
        os: "linux",
        operating_system: distribution(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        kernel_version: host.release().to_string_lossy().into_owned(),
        architecture: std::env::consts::ARCH,
        name: host.nodename().to_string_lossy().into_owned(),
        cpus: spec::cpus(),
        memory: host_memory()?,
        kvm: kvm().unwrap_or_else(|reason| Kvm {
            translation: "none".to_owned(),
            linux: false,
            reason: Some(reason),
            max_vcpus: 0,
        }),
    })
}

/// Asks the VMM; that there is none, or no `/dev/kvm`, is an answer as well.
fn kvm() -> Result<Kvm, String> {
    let program = launch::find(microvm::BINARY, microvm::BINARY_VARIABLE).map_err(|error| error.to_string())?;
    let failed = |error: &dyn std::fmt::Display| format!("cannot execute {}: {error}", program.display());
    let output = Command::new(&program).arg("host").output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(microvm::message(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))
}

/// Bytes of memory the host has (`proc_meminfo(5)`).
pub(crate) fn host_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").attempt(|| "read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::Invalid("/proc/meminfo does not tell the host's memory".to_owned()))
}

/// Which control groups the host has: v2 alone, v1 alone, or v1 with v2 beside it.
fn cgroup_version(root: &Path) -> &'static str {
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified/cgroup.procs").exists() {
        "hybrid"
    } else {
        "v1"
    }
}

/// The name in an `os-release(5)`.
fn distribution(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described() {
        assert_eq!(distribution("ID=x\nPRETTY_NAME=\"X 1\"\n"), "X 1");
        assert_eq!(distribution(""), "Linux");
        assert!(host_memory().unwrap() > 1 << 20);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_version(dir.path()), "v1");
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup_version(dir.path()), "v2");
    }
}
