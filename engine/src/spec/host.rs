//! What the OCI configuration needs to know of the host, read once before it is built.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, Capability, LinuxDeviceType};

use crate::options::{Options, Seccomp};

use super::{Error, capabilities, process};

/// Bounds how many nodes one `--device` directory or `--privileged` brings in.
const MAX_DEVICES: usize = 4096;
/// Bounds how deep `--device` and `--privileged` look for nodes below `/dev`.
const MAX_DEPTH: usize = 8;
/// Bounds what is read of a seccomp profile, bytes; docker's own has 13 kB.
const MAX_PROFILE: u64 = 1 << 20;

/// Facts of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The capabilities berth can give.
    pub capabilities: Capabilities,
    /// Number of processors.
    pub cpus: usize,
    /// The kernel's version, `(major, minor)`.
    pub kernel: (u32, u32),
    /// The nodes of `--device`, or all of `/dev` with `--privileged`.
    pub devices: Vec<DeviceNode>,
    /// The text of `--security-opt seccomp=FILE`.
    pub seccomp_profile: Option<String>,
}

/// A device of the host that the container shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: PathBuf,
    /// Character or block.
    pub kind: LinuxDeviceType,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

impl Host {
    /// Reads what `options` ask of the host.
    pub fn read(options: &Options) -> Result<Self, Error> {
        let sets = rustix::thread::capabilities(None)
            .map_err(|source| Error::Host { what: "the capabilities of berth", source: source.into() })?;
        let capabilities = capabilities::from_bits(sets.permitted.bits());
        if !capabilities.contains(&Capability::SysResource) {
            raises_nothing(options)?;
        }
        let mut devices = Vec::new();
        if options.privileged {
            directory(Path::new("/dev"), Path::new("/dev"), "rwm", 0, &mut devices)
                .map_err(|source| Error::Device { path: PathBuf::from("/dev"), source })?;
        }
        for device in &options.devices {
            let failed = |source| Error::Device { path: device.host.clone(), source };
            let before = devices.len();
            if fs::metadata(&device.host).map_err(failed)?.is_dir() {
                directory(&device.host, &device.container, &device.permissions, 0, &mut devices).map_err(failed)?;
            } else {
                devices.extend(node(&device.host, &device.container, &device.permissions).map_err(failed)?);
            }
            if devices.len() == before {
                return Err(Error::NotADevice { path: device.host.clone() });
            }
        }
        Ok(Self {
            capabilities,
            cpus: cpus(),
            kernel: kernel(),
            devices,
            seccomp_profile: match &options.seccomp {
                Seccomp::File(path) if !options.privileged => Some(profile(path)?),
                _ => None,
            },
        })
    }
}

/// Refuses what only `CAP_SYS_RESOURCE` allows: limits above berth's own, and a lower score than berth's.
fn raises_nothing(options: &Options) -> Result<(), Error> {
    let advice = "berth lacks the capability SYS_RESOURCE (see CapPrm in /proc/self/status)";
    for ulimit in &options.ulimits {
        let own = rustix::process::getrlimit(process::ulimit(&ulimit.name)?.1).maximum;
        if let Some(own) = own.filter(|own| ulimit.hard > *own) {
            let reason = format!("the most that can be given here is {own}: {advice}");
            return Err(Error::Limit { flag: "--ulimit", value: ulimit.name.clone(), reason });
        }
    }
    if let Some(score) = options.oom_score_adj {
        let failed = |source| Error::Host { what: "/proc/self/oom_score_adj", source };
        let own = fs::read_to_string("/proc/self/oom_score_adj").map_err(failed)?;
        let own: i32 = own.trim().parse().map_err(|error| failed(io::Error::other(error)))?;
        if score < own {
            let reason = format!("the least that can be given here is {own}: {advice}");
            return Err(Error::Limit { flag: "--oom-score-adj", value: score.to_string(), reason });
        }
    }
    Ok(())
}

/// The number of processors that are switched on.
pub fn cpus() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(1)
}

/// `(6, 18)` for `6.18.5-amd64`.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn profile(path: &Path) -> Result<String, Error> {
    let failed = |reason| Error::SeccompProfile { path: path.to_owned(), reason };
    let size = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MAX_PROFILE {
        return Err(failed(format!("{size} bytes; give a profile of at most {MAX_PROFILE}")));
    }
    fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

/// Everything below `host`, shown below `container`. As in docker, what belongs to the container itself is left out:
/// its terminals, shared memory and message queues.
fn directory(
    host: &Path,
    container: &Path,
    permissions: &str,
    depth: usize,
    found: &mut Vec<DeviceNode>,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        let inside = container.join(entry.file_name());
        if kind.is_dir() {
            if !["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.udev"]
                .iter()
                .any(|own| path == Path::new(own))
            {
                directory(&path, &inside, permissions, depth + 1, found)?;
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && path != Path::new("/dev/console") {
            match node(&path, &inside, permissions) {
                // Unplugged in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => found.extend(other?),
            }
        }
        if found.len() > MAX_DEVICES {
            return Err(io::Error::other(format!("more than {MAX_DEVICES} device nodes")));
        }
    }
    Ok(())
}

/// The device at `host`; `None` where it is something else.
fn node(host: &Path, container: &Path, permissions: &str) -> io::Result<Option<DeviceNode>> {
    let meta = fs::metadata(host)?;
    let kind = if meta.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if meta.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return Ok(None);
    };
    Ok(Some(DeviceNode {
        path: container.to_owned(),
        kind,
        major: i64::from(rustix::fs::major(meta.rdev())),
        minor: i64::from(rustix::fs::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        permissions: permissions.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Device, Ulimit};

    fn device(host: &str, container: &str) -> Options {
        let device = Device { host: host.into(), container: container.into(), permissions: String::from("rw") };
        Options { devices: vec![device], ..Options::default() }
    }

    #[test]
    fn a_device_is_looked_up() {
        let host = Host::read(&device("/dev/null", "/dev/nothing")).unwrap();
        let [node] = host.devices.as_slice() else { panic!("{:?}", host.devices) };
        assert_eq!((node.kind, node.major, node.minor), (LinuxDeviceType::C, 1, 3));
        assert_eq!(node.path, Path::new("/dev/nothing"));
        assert_eq!(node.permissions, "rw");
        assert!(host.cpus >= 1 && host.kernel.0 >= 4);
    }

    #[test]
    fn missing_device_and_other_file_are_refused() {
        assert!(matches!(Host::read(&device("/dev/no-such-device", "/dev/x")), Err(Error::Device { .. })));
        assert!(matches!(Host::read(&device("/proc/self/status", "/dev/x")), Err(Error::NotADevice { .. })));
    }

    #[test]
    fn privileged_brings_the_hosts_devices_but_not_its_terminals() {
        let host = Host::read(&Options { privileged: true, ..Options::default() }).unwrap();
        assert!(host.devices.iter().any(|node| node.path == Path::new("/dev/null")));
        assert!(!host.devices.iter().any(|node| node.path.starts_with("/dev/pts")));
    }

    #[test]
    fn limits_above_berths_own_are_refused_by_name() {
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let Some(own) = own else {
            println!("not tested: the number of open files is not limited here");
            return;
        };
        let with =
            |hard| Options { ulimits: vec![Ulimit { name: "nofile".into(), soft: 1, hard }], ..Options::default() };
        raises_nothing(&with(own)).unwrap();
        let error = raises_nothing(&with(own + 1)).unwrap_err().to_string();
        assert!(error.starts_with("--ulimit nofile") && error.contains(&own.to_string()), "{error}");
        raises_nothing(&Options { oom_score_adj: Some(1000), ..Options::default() }).unwrap();
    }
}
