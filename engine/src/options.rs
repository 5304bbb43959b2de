//! What a person can ask of a container: the flags of `berth run` and `berth create`, parsed and checked in form.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use berth_runtime::monitor::RestartPolicy;
use serde::{Deserialize, Serialize};

/// The flags of `berth run`. `None` and empty mean that the flag was not given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The image reference.
    pub image: String,
    /// Arguments after the image; empty: the image's `Cmd`.
    pub command: Vec<String>,
    /// `--entrypoint`; an empty string clears the image's.
    pub entrypoint: Option<String>,
    /// `--name`
    pub name: Option<String>,
    /// `--hostname`
    pub hostname: Option<String>,
    /// `-t`
    pub tty: bool,
    /// `-i`
    pub interactive: bool,
    /// `--rm`
    pub remove: bool,
    /// `-e`, `--env-file`: `KEY=VALUE`, in order; a bare `KEY` has already been taken from the caller's environment.
    pub env: Vec<String>,
    /// `-v`, `--mount`, `--tmpfs`
    pub mounts: Vec<Mount>,
    /// `-w`
    pub workdir: Option<String>,
    /// `-u`: `name|uid[:group|gid]`
    pub user: Option<String>,
    /// `--group-add`
    pub group_add: Vec<String>,
    /// `--read-only`
    pub read_only: bool,
    /// `--cap-add`, names with or without `CAP_`, or `ALL`
    pub cap_add: Vec<String>,
    /// `--cap-drop`
    pub cap_drop: Vec<String>,
    /// `--privileged`
    pub privileged: bool,
    /// `--security-opt no-new-privileges[=false]`; berth's default is on.
    pub no_new_privileges: Option<bool>,
    /// `--security-opt seccomp=…`
    pub seccomp: Seccomp,
    /// `--device HOST[:CONTAINER[:rwm]]`
    pub devices: Vec<Device>,
    /// `--ulimit NAME=SOFT[:HARD]`
    pub ulimits: Vec<Ulimit>,
    /// `--sysctl KEY=VALUE`
    pub sysctls: BTreeMap<String, String>,
    /// `--shm-size`, bytes
    pub shm_size: Option<u64>,
    /// Limits that `berth update` can change later.
    pub limits: Limits,
    /// `--network`
    pub network: Network,
    /// `--pid host`
    pub pid_host: bool,
    /// `--ipc host`
    pub ipc_host: bool,
    /// `--uts host`
    pub uts_host: bool,
    /// `--cgroupns host`
    pub cgroup_host: bool,
    /// `--userns`
    pub userns: UserNamespace,
    /// `--init`
    pub init: bool,
    /// `--stop-signal`, a name or number
    pub stop_signal: Option<String>,
    /// `--stop-timeout`
    pub stop_timeout: Option<Duration>,
    /// `--restart`
    pub restart: RestartPolicy,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--annotation`
    pub annotations: BTreeMap<String, String>,
    /// `--cidfile`
    pub cidfile: Option<PathBuf>,
    /// `--pull`
    pub pull: Pull,
    /// `--add-host NAME:ADDRESS`
    pub add_hosts: Vec<(String, String)>,
    /// `--oom-score-adj`, -1000 to 1000
    pub oom_score_adj: Option<i32>,
    /// `--platform`, `os[/architecture[/variant]]`
    pub platform: Option<String>,
    /// `--isolation`
    pub isolation: Isolation,
    /// `--guest`: what runs in a microVM; after creation never [`Guest::Auto`]
    #[serde(default)]
    pub guest: Guest,
    /// `--kernel`: what a microVM boots instead of the host's newest kernel
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// `--timeout`: how long a Wasm module may run
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// `--fuel`: how much work a Wasm module may do
    #[serde(default)]
    pub fuel: Option<u64>,
    /// `berth wasm serve`
    #[serde(default)]
    pub serve: Option<Serve>,
}

/// How a Wasm component serves HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// `--listen`
    pub listen: SocketAddr,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--concurrency`: requests at once
    pub concurrency: u32,
    /// `--request-memory`: bytes of one instance
    pub memory: Option<u64>,
    /// `--requests-per-instance`: how many an instance answers before it ends
    #[serde(default = "one")]
    pub requests: u32,
}

fn one() -> u32 {
    1
}

/// `--isolation`: what the sandbox's first process does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// It becomes the image's process.
    #[default]
    Container,
    /// It becomes a VMM that boots a Linux guest.
    Microvm,
    /// It becomes the host of a Wasm module.
    Wasm,
}

impl Isolation {
    /// The value of the annotation [`berth_runtime::annotations::ISOLATION`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Microvm => "microvm",
            Self::Wasm => "wasm",
        }
    }
}

/// `--guest`: what runs in a microVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guest {
    /// A Linux kernel where the host can run one, else the process guest.
    #[default]
    Auto,
    /// A Linux kernel, which runs the image's programs.
    Linux,
    /// The image's programs alone: the VMM serves their system calls.
    Process,
}

impl Options {
    /// Whether the image's files are seen by a kernel of its own.
    pub fn has_own_kernel(&self) -> bool {
        self.isolation == Isolation::Microvm && self.guest != Guest::Process
    }

    /// Whether a VMM serves the system calls of the image's programs.
    pub fn is_process_guest(&self) -> bool {
        self.isolation == Isolation::Microvm && self.guest == Guest::Process
    }
}

/// Resource limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// `--memory`, bytes
    pub memory: Option<u64>,
    /// `--memory-swap`, memory plus swap in bytes; -1: unlimited swap; absent: twice [`Limits::memory`]
    pub memory_swap: Option<i64>,
    /// `--memory-reservation`, bytes
    pub memory_reservation: Option<u64>,
    /// `--cpus`, cores
    pub cpus: Option<f64>,
    /// `--cpu-shares`, relative weight, 1024 by default
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`, for example `0-2,4`
    pub cpuset_cpus: Option<String>,
    /// `--pids-limit`; -1: unlimited
    pub pids: Option<i64>,
    /// `--blkio-weight`, 10 to 1000
    pub blkio_weight: Option<u16>,
}

impl Limits {
    /// These limits with those that `changes` names put in their place, as `berth update` does.
    #[must_use]
    pub fn updated(&self, changes: &Self) -> Self {
        Self {
            memory: changes.memory.or(self.memory),
            memory_swap: changes.memory_swap.or(self.memory_swap),
            memory_reservation: changes.memory_reservation.or(self.memory_reservation),
            cpus: changes.cpus.or(self.cpus),
            cpu_shares: changes.cpu_shares.or(self.cpu_shares),
            cpuset_cpus: changes.cpuset_cpus.clone().or_else(|| self.cpuset_cpus.clone()),
            pids: changes.pids.or(self.pids),
            blkio_weight: changes.blkio_weight.or(self.blkio_weight),
        }
    }
}

/// One `-v`, `--mount` or `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where in the container, absolute.
    pub target: String,
    /// What is mounted there.
    pub source: MountSource,
    /// `ro`
    pub read_only: bool,
}

/// What a [`Mount`] shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum MountSource {
    /// A path of the host.
    Bind {
        /// Absolute path on the host.
        path: PathBuf,
        /// `-v` makes a missing directory; `--mount` refuses.
        create: bool,
        /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`
        propagation: Option<String>,
        /// `idmap`: with [`Options::userns`], what belongs to the host's root and other ids belongs to the container's same ids.
        #[serde(default)]
        idmap: bool,
    },
    /// A named volume, or an anonymous one that goes when its container goes.
    Volume {
        /// `None`: anonymous
        name: Option<String>,
        /// `nocopy`: do not fill an empty volume from the image
        no_copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Mount options such as `size=64m`, `mode=1777`.
        options: Vec<String>,
    },
    /// A disk, which the kernel of a Linux guest mounts.
    Disk {
        /// Absolute path on the host of a file or block device.
        path: PathBuf,
        /// What is on it.
        filesystem: Filesystem,
    },
}

/// What a Linux guest can have on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// Reads and writes.
    Ext4,
    /// Is read only.
    Erofs,
}

impl Filesystem {
    /// The name that `mount(2)` knows it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
        }
    }
}

/// `--device`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Device node on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub container: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// `--ulimit`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As in `ulimit`, without `RLIMIT_`: `nofile`, `nproc`, …
    pub name: String,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// `--security-opt seccomp=…`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// berth's default profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// A profile in docker's or the OCI runtime specification's JSON format.
    File(PathBuf),
}

/// `--network`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Own network namespace with a loopback interface only.
    #[default]
    None,
    /// The host's network namespace.
    Host,
    /// A network namespace that is there already, by a file that stands for it (`namespaces(7)`).
    Joined(PathBuf),
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Joined(path) => write!(f, "ns:{}", path.display()),
        }
    }
}

impl Network {
    /// Whether it is the network of others as well; with the flag that says so.
    pub fn shared(&self) -> (bool, &'static str) {
        match self {
            Self::None => (false, "--network none"),
            Self::Host => (true, "--network host"),
            Self::Joined(_) => (true, "--network ns:"),
        }
    }
}

/// `--userns`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// The host's: the container's ids are the host's.
    #[default]
    Host,
    /// One of its own, with a range of ids that no other container has; [`crate::create`] makes it a [`Self::Range`].
    Auto,
    /// One of its own.
    Range(IdRange),
}

impl UserNamespace {
    /// The host's ids, where it is one of the container's own and they are known.
    pub fn range(self) -> Option<IdRange> {
        match self {
            Self::Range(range) => Some(range),
            Self::Host | Self::Auto => None,
        }
    }

    /// The host's id of the container's user and group 0.
    pub fn root(self) -> u32 {
        self.range().map_or(0, |range| range.first)
    }
}

/// The user and group ids of the host that the container's ids from 0 on are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id of id 0.
    pub first: u32,
    /// How many ids there are.
    pub count: u32,
}

/// `--pull`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Before every run.
    Always,
    /// Where the image is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}
