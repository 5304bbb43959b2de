//! The flags of `berth run` and `berth create`, and how they become [`Options`]; the limits of `berth update`.
//!
//! clap checks each value by itself with the functions of the modules below, so that its errors name flag and value.
//! What flags say together is checked in [`ContainerFlags::into_options`].

mod isolation;
mod limits;
mod lists;
mod mount;
mod process;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use berth_engine::options::{Device, Guest, Isolation, Mount, Network, Options, Seccomp, Ulimit, UserNamespace};
use berth_engine::{size, spec};
use berth_runtime::monitor::RestartPolicy;
use clap::{ArgAction, Args, ValueEnum};

pub use isolation::network;
use isolation::{Namespace, SecurityOpt};
pub use limits::{LimitFlags, time};
pub use lists::{full_pair, labels, pair};
use process::PullPolicy;
pub use process::restart;

/// `berth run`
#[derive(Debug, Args)]
pub struct RunFlags {
    /// Leave the container running in the background and print its id
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    container: ContainerFlags,
}

impl RunFlags {
    /// The options, checked; see [`ContainerFlags::into_options`].
    pub fn into_options(self) -> Result<Options> {
        self.container.into_options()
    }
}

/// What `berth run` and `berth create` have in common.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct ContainerFlags {
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// Keep standard input open
    #[arg(short, long, help_heading = "Process")]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, help_heading = "Process")]
    tty: bool,
    /// Set an environment variable; without a value, take over the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = lists::pair, help_heading = "Process")]
    env: Vec<String>,
    /// Set the environment variables in this file, one KEY=VALUE a line
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    env_file: Vec<PathBuf>,
    /// Run in this directory of the container
    #[arg(short, long, value_name = "DIR", value_parser = process::workdir, help_heading = "Process")]
    workdir: Option<String>,
    /// Run as this user, and group, of the image
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = process::user, help_heading = "Process")]
    user: Option<String>,
    /// Add a supplementary group
    #[arg(long, value_name = "GROUP", value_parser = process::group, help_heading = "Process")]
    group_add: Vec<String>,
    /// Run this program in place of the image's entry point; '' for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    entrypoint: Option<String>,
    /// Run a small init that reaps orphans and forwards signals
    #[arg(long, help_heading = "Process")]
    init: bool,
    /// Set a resource limit of the process, for example nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = process::ulimit, help_heading = "Process")]
    ulimit: Vec<Ulimit>,
    /// Signal that 'berth stop' sends [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = process::stop_signal, help_heading = "Process")]
    stop_signal: Option<String>,
    /// Seconds that 'berth stop' waits before it kills; -1: for ever [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = process::stop_timeout, help_heading = "Process")]
    stop_timeout: Option<Duration>,
    /// Start again after the end: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = process::restart, help_heading = "Process")]
    restart: Option<RestartPolicy>,
    /// How readily the kernel ends it when the host is out of memory, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true, value_parser = process::oom_score_adj, help_heading = "Process")]
    oom_score_adj: Option<i32>,

    /// Name the container [default: a random name]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = process::name, help_heading = "Container")]
    name: Option<String>,
    /// Host name of the container [default: the first 12 digits of its id]
    #[arg(short = 'h', long, value_name = "NAME", value_parser = process::hostname, help_heading = "Container")]
    hostname: Option<String>,
    /// Remove the container when it has ended
    #[arg(long, help_heading = "Container")]
    rm: bool,
    /// Attach a label
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = lists::pair, help_heading = "Container")]
    label: Vec<String>,
    /// Attach the labels in this file, one KEY=VALUE a line
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    label_file: Vec<PathBuf>,
    /// Add an annotation to the OCI configuration
    #[arg(long, value_name = "KEY=VALUE", value_parser = lists::full_pair, help_heading = "Container")]
    annotation: Vec<(String, String)>,
    /// Write the container's id to this file, which must not exist
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    cidfile: Option<PathBuf>,
    /// When to pull the image
    #[arg(
        long,
        value_enum,
        default_value = "missing",
        value_name = "always|missing|never",
        hide_possible_values = true,
        help_heading = "Container"
    )]
    pull: PullPolicy,
    /// Choose this platform of the image, for example linux/amd64
    #[arg(long, value_name = "OS/ARCH", value_parser = process::platform, help_heading = "Container")]
    platform: Option<String>,

    /// Show a directory of the host or a volume: [SOURCE:]TARGET[:ro]
    #[arg(short, long, value_name = "MOUNT", value_parser = mount::volume, help_heading = "Files")]
    volume: Vec<Mount>,
    /// Mount type=bind|volume|tmpfs,source=...,target=...[,readonly]; in a Linux guest also a disk, type=ext4|erofs
    #[arg(long, value_name = "MOUNT", value_parser = mount::mount, help_heading = "Files")]
    mount: Vec<Mount>,
    /// Mount memory: TARGET[:size=64m,mode=755]
    #[arg(long, value_name = "MOUNT", value_parser = mount::tmpfs, help_heading = "Files")]
    tmpfs: Vec<Mount>,
    /// Let the container only read the image's files
    #[arg(long, help_heading = "Files")]
    read_only: bool,
    /// Size of /dev/shm in bytes, or with k, m, g; 0: the default [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, help_heading = "Files")]
    shm_size: Option<u64>,
    /// Give a device of the host: HOST[:CONTAINER][:rwm]
    #[arg(long, value_name = "DEVICE", value_parser = isolation::device, help_heading = "Files")]
    device: Vec<Device>,

    #[command(flatten)]
    limits: LimitFlags,

    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME", value_parser = isolation::capability, help_heading = "Isolation")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME", value_parser = isolation::capability, help_heading = "Isolation")]
    cap_drop: Vec<String>,
    /// Give all capabilities and devices: the container can take over the host
    #[arg(long, help_heading = "Isolation")]
    privileged: bool,
    /// no-new-privileges[=false], seccomp=FILE or seccomp=unconfined
    #[arg(long, value_name = "OPTION", value_parser = isolation::security_opt, help_heading = "Isolation")]
    security_opt: Vec<SecurityOpt>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "KEY=VALUE", value_parser = lists::full_pair, help_heading = "Isolation")]
    sysctl: Vec<(String, String)>,
    /// Network: none, host, or a namespace that is there already, ns:PATH
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none", value_parser = isolation::network, help_heading = "Isolation")]
    network: Network,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = process::add_host, help_heading = "Isolation")]
    add_host: Vec<(String, String)>,
    /// Processes to see
    #[arg(
        long,
        value_enum,
        default_value = "private",
        value_name = "host|private",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    pid: Namespace,
    /// Shared memory and message queues to see
    #[arg(
        long,
        value_enum,
        default_value = "private",
        value_name = "host|private",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    ipc: Namespace,
    /// Host name to have
    #[arg(
        long,
        value_enum,
        default_value = "private",
        value_name = "host|private",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    uts: Namespace,
    /// Control groups to see
    #[arg(
        long,
        value_enum,
        default_value = "private",
        value_name = "host|private",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    cgroupns: Namespace,
    /// User ids: the host's, or a range of the host's for root and others: auto, or FIRST:COUNT
    #[arg(long, value_name = "host|auto|FIRST:COUNT", default_value = "host", value_parser = isolation::user_namespace, help_heading = "Isolation")]
    userns: UserNamespace,
    /// What the image runs in: a container, a microVM with a Linux kernel of its own, or a Wasm sandbox
    #[arg(
        long,
        value_enum,
        default_value = "container",
        value_name = "container|microvm|wasm",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    isolation: IsolationKind,

    /// What runs in a microVM: a Linux kernel, the image's programs alone, or the first of these that the host can run
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        value_name = "auto|linux|process",
        hide_possible_values = true,
        help_heading = "Isolation"
    )]
    guest: GuestKind,

    /// What a microVM boots: a vmlinux or bzImage whose modules are in /lib/modules; by default the newest kernel in /boot
    #[arg(long, value_name = "FILE", help_heading = "Isolation")]
    kernel: Option<PathBuf>,

    /// How long a Wasm module may run, for example 500ms, 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = limits::time, help_heading = "Limits")]
    timeout: Option<Duration>,
    /// How much work a Wasm module may do, in units of about an instruction; the same each time
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    fuel: Option<u64>,

    /// The image, and after it the command to run in place of the image's own
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE", help_heading = None)]
    image_and_command: Vec<String>,
}

/// `--isolation`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsolationKind {
    /// Namespaces, cgroups and seccomp
    Container,
    /// A machine of its own with a Linux kernel
    Microvm,
    /// A host of Wasm modules
    Wasm,
}

/// `--guest`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GuestKind {
    /// What the host can run
    Auto,
    /// A Linux kernel
    Linux,
    /// The image's programs without a kernel
    Process,
}

impl From<IsolationKind> for Isolation {
    fn from(kind: IsolationKind) -> Self {
        match kind {
            IsolationKind::Container => Self::Container,
            IsolationKind::Microvm => Self::Microvm,
            IsolationKind::Wasm => Self::Wasm,
        }
    }
}

impl From<GuestKind> for Guest {
    fn from(kind: GuestKind) -> Self {
        match kind {
            GuestKind::Auto => Self::Auto,
            GuestKind::Linux => Self::Linux,
            GuestKind::Process => Self::Process,
        }
    }
}

impl ContainerFlags {
    /// The options, checked for what they say together. Reads the files of `--env-file` and `--label-file`, and the
    /// caller's environment for `-e KEY`.
    pub fn into_options(self) -> Result<Options> {
        let mut words = self.image_and_command.into_iter();
        let image = words.next().unwrap_or_default();
        let mut no_new_privileges = None;
        let mut seccomp = Seccomp::Default;
        for option in self.security_opt {
            match option {
                SecurityOpt::NoNewPrivileges(value) => no_new_privileges = Some(value),
                SecurityOpt::Seccomp(value) => seccomp = value,
                SecurityOpt::Nothing => {}
            }
        }
        let options = Options {
            image,
            command: words.collect(),
            entrypoint: self.entrypoint,
            name: self.name,
            hostname: self.hostname,
            tty: self.tty,
            interactive: self.interactive,
            remove: self.rm,
            env: lists::env(&self.env_file, &self.env, |key| std::env::var(key).ok())?,
            mounts: [self.volume, self.mount, self.tmpfs].concat(),
            workdir: self.workdir.filter(|directory| !directory.is_empty()),
            user: self.user.filter(|user| !user.is_empty()),
            group_add: self.group_add,
            read_only: self.read_only,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            privileged: self.privileged,
            no_new_privileges,
            seccomp,
            devices: self.device,
            ulimits: self.ulimit,
            sysctls: self.sysctl.into_iter().collect(),
            shm_size: self.shm_size.filter(|&bytes| bytes > 0),
            limits: self.limits.into(),
            network: self.network,
            pid_host: self.pid == Namespace::Host,
            ipc_host: self.ipc == Namespace::Host,
            uts_host: self.uts == Namespace::Host,
            cgroup_host: self.cgroupns == Namespace::Host,
            userns: self.userns,
            init: self.init,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            restart: self.restart.unwrap_or_default(),
            labels: lists::labels(&self.label_file, &self.label)?,
            annotations: self.annotation.into_iter().collect(),
            cidfile: self.cidfile,
            pull: self.pull.into(),
            add_hosts: self.add_host,
            oom_score_adj: self.oom_score_adj,
            platform: self.platform,
            isolation: self.isolation.into(),
            guest: self.guest.into(),
            kernel: self.kernel,
            timeout: self.timeout,
            fuel: self.fuel,
            serve: None,
        };
        if options.image.is_empty() {
            bail!("the image is empty: give its name, for example busybox");
        }
        if options.remove && options.restart != RestartPolicy::No {
            bail!("--rm cannot be combined with --restart: what is removed cannot start again; leave out one of them");
        }
        spec::check(&options)?;
        Ok(options)
    }
}
