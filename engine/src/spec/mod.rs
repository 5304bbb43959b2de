//! From an image's configuration and a person's options to the OCI runtime configuration, `config.json`.
//!
//! [`Host::read`] asks the host what it must; [`build`] is a pure function of its [`Inputs`].

mod capabilities;
mod error;
pub mod etc;
mod host;
mod mounts;
mod process;
mod resources;
mod seccomp_file;
mod sysctls;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use berth_runtime::annotations;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capabilities, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    LinuxSeccomp, Root, Spec,
};

pub use capabilities::check as check_capability;
pub use error::{Error, refuse};
pub use host::{DeviceNode, Host, cpus};
pub use mounts::clean_target;
pub use process::{args, ulimit_kind};
pub use resources::{MIN_MEMORY, check as check_limits, resources};

use crate::options::{Isolation, Network, Options, Seccomp, UserNamespace};
use crate::volumes::ResolvedMount;

/// The version of the OCI runtime specification that the configuration follows.
const OCI_VERSION: &str = "1.1.0";

/// Paths of `/proc` and `/sys` that show or change the host: docker's list.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of `/proc` that may be read but not written: docker's list.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything a configuration is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The container's id, 64 hexadecimal digits.
    pub id: &'a str,
    /// What was asked for.
    pub options: &'a Options,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// The layer directories, topmost first.
    pub lower_dirs: &'a [PathBuf],
    /// The layer below all others, and where they are mounted; absolute.
    pub base: &'a Path,
    /// The container's directory with `upper` and `work`; absolute.
    pub dir: &'a Path,
    /// The container's volatile directory with what [`etc::write`] writes; absolute.
    pub live_dir: &'a Path,
    /// The person's mounts and the image's volumes, see [`crate::volumes::Store::resolve`].
    pub mounts: &'a [ResolvedMount],
    /// Facts of the host.
    pub host: &'a Host,
    /// Whether the writable layer need not survive a crash of the host (`--rm`).
    pub volatile: bool,
}

/// Checks everything that options say together, before anything is pulled or made.
pub fn check(options: &Options) -> Result<(), Error> {
    if options.userns != UserNamespace::Host {
        let reason = "a user namespace holds no rights over the host's namespaces; leave out one of them";
        let shared = [
            (options.privileged, "--privileged"),
            options.network.shared(),
            (options.pid_host, "--pid host"),
            (options.ipc_host, "--ipc host"),
            (options.uts_host, "--uts host"),
        ];
        refuse("--userns", &shared, reason)?;
    }
    if options.uts_host && options.hostname.is_some() {
        let reason = "it would rename the host; leave out one of them";
        return Err(Error::Conflict { one: "--hostname", other: "--uts host", reason });
    }
    if options.shm_size.is_some() && options.ipc_host {
        let reason = "the host's /dev/shm is shown as it is; leave out one of them";
        return Err(Error::Conflict { one: "--shm-size", other: "--ipc host", reason });
    }
    options.cap_add.iter().chain(&options.cap_drop).try_for_each(|name| check_capability(name))?;
    mounts::sorted_targets(options.mounts.iter().map(|mount| mount.target.as_str()))?;
    sysctls::check(options)?;
    check_limits(&options.limits, cpus())
}

/// The control group of a container.
pub fn cgroups_path(id: &str) -> String {
    format!("/berth/{id}")
}

/// The OCI configuration of a container.
pub fn build(inputs: &Inputs) -> Result<Spec, Error> {
    let options = inputs.options;
    let capabilities = match options.isolation {
        // Its host needs none.
        Isolation::Wasm => Capabilities::default(),
        Isolation::Container | Isolation::Microvm => {
            capabilities::compute(&options.cap_add, &options.cap_drop, options.privileged, &inputs.host.capabilities)?
        }
    };
    let mut root = Root::default();
    root.set_path(inputs.base.to_owned()).set_readonly(Some(options.read_only));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname((!options.uts_host).then(|| process::hostname(inputs)))
        .set_process(Some(process::process(inputs, &capabilities)?))
        .set_mounts(Some(mounts::mounts(inputs)?))
        .set_annotations(Some(annotations(inputs)))
        .set_linux(Some(linux(inputs, &capabilities)?));
    Ok(spec)
}

fn annotations(inputs: &Inputs) -> HashMap<String, String> {
    let options = inputs.options;
    let mut all: HashMap<String, String> = options.annotations.clone().into_iter().collect();
    all.insert(annotations::USER.to_owned(), process::user_name(options, inputs.image));
    all.insert(annotations::ISOLATION.to_owned(), options.isolation.as_str().to_owned());
    all.remove(annotations::INIT);
    all.remove(annotations::GROUPS);
    if options.init {
        all.insert(annotations::INIT.to_owned(), String::from("true"));
    }
    if !options.group_add.is_empty() {
        all.insert(annotations::GROUPS.to_owned(), options.group_add.join(","));
    }
    all
}

fn linux(inputs: &Inputs, capabilities: &Capabilities) -> Result<Linux, Error> {
    let options = inputs.options;
    sysctls::check(options)?;
    check_limits(&options.limits, inputs.host.cpus)?;
    let sees_kernel = options.isolation != Isolation::Wasm;
    let paths = |list: &[&str]| {
        (sees_kernel && !options.privileged).then(|| list.iter().map(|path| (*path).to_owned()).collect())
    };
    let mapping = options.userns.range().map(|range| vec![mounts::id_mapping(range)]);
    let devices: Vec<LinuxDevice> = inputs.host.devices.iter().map(device).collect();
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(options)))
        .set_uid_mappings(mapping.clone())
        .set_gid_mappings(mapping)
        .set_cgroups_path(Some(cgroups_path(inputs.id).into()))
        .set_resources(Some(with_devices(resources(&options.limits), options.privileged, &inputs.host.devices)))
        .set_devices((!devices.is_empty()).then_some(devices))
        .set_sysctl((!options.sysctls.is_empty()).then(|| options.sysctls.clone().into_iter().collect()))
        .set_rootfs_propagation(mounts::rootfs_propagation(inputs.mounts))
        .set_masked_paths(paths(&MASKED_PATHS))
        .set_readonly_paths(paths(&READONLY_PATHS))
        .set_seccomp(seccomp(inputs, capabilities)?);
    Ok(linux)
}

fn namespaces(options: &Options) -> Vec<LinuxNamespace> {
    [
        (LinuxNamespaceType::Mount, true),
        (LinuxNamespaceType::Pid, !options.pid_host),
        (LinuxNamespaceType::Network, options.network != Network::Host),
        (LinuxNamespaceType::Uts, !options.uts_host),
        (LinuxNamespaceType::Ipc, !options.ipc_host),
        (LinuxNamespaceType::Cgroup, !options.cgroup_host),
        (LinuxNamespaceType::User, options.userns != UserNamespace::Host),
    ]
    .into_iter()
    .filter(|(_, own)| *own)
    .map(|(kind, _)| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        if let (LinuxNamespaceType::Network, Network::Joined(path)) = (kind, &options.network) {
            namespace.set_path(Some(path.clone()));
        }
        namespace
    })
    .collect()
}

/// Adds the device rules: all with `--privileged`, else none but `--device`. The runtime adds the default devices.
fn with_devices(mut resources: LinuxResources, privileged: bool, nodes: &[DeviceNode]) -> LinuxResources {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(privileged).set_access(Some(String::from("rwm")));
    let mut rules = vec![all];
    if !privileged {
        rules.extend(nodes.iter().map(|node| {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(node.kind))
                .set_major(Some(node.major))
                .set_minor(Some(node.minor))
                .set_access(Some(node.permissions.clone()));
            rule
        }));
    }
    resources.set_devices(Some(rules));
    resources
}

fn device(node: &DeviceNode) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(node.kind)
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

fn seccomp(inputs: &Inputs, capabilities: &Capabilities) -> Result<Option<LinuxSeccomp>, Error> {
    match &inputs.options.seccomp {
        _ if inputs.options.privileged => Ok(None),
        // Its host has one of its own, which knows what it takes.
        _ if inputs.options.isolation == Isolation::Wasm => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => Ok(Some(berth_runtime::seccomp::default_profile(capabilities))),
        Seccomp::File(path) => {
            let machine = seccomp_file::Machine { arch: std::env::consts::ARCH, kernel: inputs.host.kernel };
            seccomp_file::parse(inputs.host.seccomp_profile.as_deref().unwrap_or_default(), capabilities, machine)
                .map(Some)
                .map_err(|reason| Error::SeccompProfile { path: path.clone(), reason })
        }
    }
}
