//! What a process and a machine are made of: the parts of an OCI configuration that a guest can give.

use std::path::PathBuf;

use berth_runtime::annotations;
use oci_spec::runtime::{Mount as OciMount, Process, Spec};
use serde::{Deserialize, Serialize};

/// What is to be run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Arguments, environment, directory, ids, limits and so on, as for a container.
    pub process: Process,
    /// The user to look up in the image instead, see [`annotations::USER`].
    pub user: Option<String>,
    /// Groups to look up in the image besides, see [`annotations::GROUPS`].
    pub groups: Option<String>,
    /// With the first process: what is to be set up before.
    pub machine: Option<Machine>,
}

/// What is set up once, before the first process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The guest's name.
    pub hostname: Option<String>,
    /// Files to write into the root filesystem, such as `/etc/hosts`.
    pub files: Vec<GuestFile>,
    /// What is mounted, parents first.
    pub mounts: Vec<GuestMount>,
    /// Whether the root filesystem is read-only for the guest's processes.
    pub is_read_only: bool,
    /// The network card's address.
    pub network: Option<Network>,
    /// How many processes and threads there may be; the kernel's own do not count.
    #[serde(default)]
    pub tasks: Option<u32>,
}

/// A small file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFile {
    /// Where it goes.
    pub path: PathBuf,
    /// What it holds.
    pub content: String,
}

/// Something to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Where it goes; made where it is missing.
    pub destination: PathBuf,
    /// `tmpfs`, or the filesystem on the disk.
    pub kind: String,
    /// Serial number of the virtio disk it is on; none for `tmpfs`.
    pub disk: Option<String>,
    /// Options as in `mount(8)`: `ro`, `nosuid`, `nodev`, `noexec`, and what the filesystem knows.
    pub options: Vec<String>,
}

/// An IPv4 address for the guest's first network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guest's address.
    pub address: std::net::Ipv4Addr,
    /// Bits of it that the network's hosts have in common.
    pub prefix: u8,
    /// Where everything else is reached.
    pub gateway: Option<std::net::Ipv4Addr>,
}

/// Why a configuration cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A directory or file of the host.
    #[error(
        "cannot give the bind mount of '{source_path}' at '{destination}' to a microVM, whose kernel sees no directory of \
         the host; give it a disk (a mount of type ext4 or erofs whose source is the disk's file), or use --isolation container"
    )]
    Bind {
        /// On the host.
        source_path: String,
        /// In the guest.
        destination: String,
    },
    /// A kind of mount that makes no sense in a guest.
    #[error("cannot mount a filesystem of type '{kind}' at '{destination}' in a microVM; use --isolation container")]
    Kind {
        /// As in the configuration.
        kind: String,
        /// In the guest.
        destination: String,
    },
    /// The configuration has no process.
    #[error("the OCI configuration has no process to run")]
    NoProcess,
    /// One of the files below `/etc` cannot be read.
    #[error("cannot read '{path}' for the microVM: {error}")]
    Etc {
        /// On the host.
        path: String,
        /// Why.
        error: std::io::Error,
    },
}

/// A disk that is to be given to the machine as a virtio disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its file or block device on the host.
    pub source: PathBuf,
    /// Where it is mounted in the guest.
    pub destination: PathBuf,
    /// The serial number the guest finds it by.
    pub serial: String,
    /// Whether the guest only reads it.
    pub is_read_only: bool,
}

/// Files of the host that a guest gets as copies: berth writes them for each container.
const COPIED: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
/// Kinds of mount that the init makes itself.
const OWN: [&str; 6] = ["proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// Filesystems on disks: those whose modules are in the initramfs.
const ON_DISKS: [&str; 2] = ["ext4", "erofs"];

impl Start {
    /// The first process of an OCI configuration, and the disks that are to be opened for its mounts. `read` reads the files that
    /// the guest gets as copies.
    pub fn of_spec(
        spec: &Spec,
        mut read: impl FnMut(&OciMount) -> std::io::Result<String>,
    ) -> Result<(Self, Vec<Volume>), Refused> {
        let annotation = |key| spec.annotations().as_ref().and_then(|all| all.get(key)).cloned();
        let mut machine = Machine {
            hostname: spec.hostname().clone(),
            is_read_only: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
            tasks: tasks(spec),
            ..Machine::default()
        };
        let mut volumes = Vec::new();
        for mount in spec.mounts().iter().flatten() {
            machine.add(mount, &mut volumes, &mut read)?;
        }
        let start = Self {
            process: spec.process().clone().ok_or(Refused::NoProcess)?,
            user: annotation(annotations::USER),
            groups: annotation(annotations::GROUPS),
            machine: Some(machine),
        };
        Ok((start, volumes))
    }
}

/// `pids.limit`, where there is one.
fn tasks(spec: &Spec) -> Option<u32> {
    let pids = spec.linux().as_ref()?.resources().as_ref()?.pids().as_ref()?.limit();
    u32::try_from(pids).ok().filter(|limit| *limit > 0)
}

impl Machine {
    fn add(
        &mut self,
        mount: &OciMount,
        volumes: &mut Vec<Volume>,
        read: &mut impl FnMut(&OciMount) -> std::io::Result<String>,
    ) -> Result<(), Refused> {
        let destination = mount.destination().clone();
        let options = mount.options().clone().unwrap_or_default();
        let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
        let kind = if is_bind { "bind" } else { mount.typ().as_deref().unwrap_or_default() };
        let source = mount.source().clone().unwrap_or_default();
        let shown = destination.display().to_string();
        match kind {
            // The image's layers are the root disk.
            "overlay" if shown == "/" => {}
            "tmpfs" if shown == "/dev" => {}
            _ if OWN.contains(&kind) => {}
            "tmpfs" => self.mounts.push(GuestMount { destination, kind: kind.to_owned(), disk: None, options }),
            "bind" if COPIED.contains(&shown.as_str()) => {
                let content =
                    read(mount).map_err(|error| Refused::Etc { path: source.display().to_string(), error })?;
                self.files.push(GuestFile { path: destination, content });
            }
            "bind" => {
                return Err(Refused::Bind { source_path: source.display().to_string(), destination: shown });
            }
            _ if ON_DISKS.contains(&kind) => {
                let serial = format!("volume{}", volumes.len());
                let is_read_only = options.iter().any(|option| option == "ro");
                let (disk, place) = (Some(serial.clone()), destination.clone());
                volumes.push(Volume { source, destination: place, serial, is_read_only });
                self.mounts.push(GuestMount { destination, kind: kind.to_owned(), disk, options });
            }
            _ => return Err(Refused::Kind { kind: kind.to_owned(), destination: shown }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mount: &OciMount) -> std::io::Result<String> {
        std::fs::read_to_string(mount.source().as_deref().unwrap())
    }

    fn spec(mounts: &serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "hostname": "box",
            "root": { "path": "rootfs", "readonly": true },
            "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "annotations": { "org.berth.user": "alice" },
            "linux": { "resources": { "pids": { "limit": 17 } } },
            "mounts": mounts,
        }))
        .unwrap()
    }

    #[test]
    fn a_container_becomes_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let (start, volumes) = Start::of_spec(
            &spec(&serde_json::json!([
                { "destination": "/", "type": "overlay", "source": "overlay" },
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1024"] },
                { "destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind"] },
                { "destination": "/data", "type": "ext4", "source": "/disk.img", "options": ["ro"] },
            ])),
            read,
        )
        .unwrap();
        let machine = start.machine.unwrap();
        assert_eq!((start.user.as_deref(), machine.hostname.as_deref()), (Some("alice"), Some("box")));
        assert!(machine.is_read_only);
        assert_eq!(machine.tasks, Some(17));
        let file = GuestFile { path: "/etc/hosts".into(), content: "127.0.0.1 localhost\n".to_owned() };
        assert_eq!(machine.files, [file]);
        let places: Vec<_> = machine.mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect();
        assert_eq!(places, ["/dev/shm", "/data"]);
        assert_eq!(machine.mounts[1].disk.as_deref(), Some("volume0"));
        let (source, destination) = ("/disk.img".into(), "/data".into());
        let volume = Volume { source, destination, serial: "volume0".to_owned(), is_read_only: true };
        assert_eq!(volumes, [volume]);
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused() {
        let refused = |mount: serde_json::Value| {
            Start::of_spec(&spec(&serde_json::json!([mount])), read).unwrap_err().to_string()
        };
        let bind = refused(
            serde_json::json!({ "destination": "/x", "type": "none", "source": "/home", "options": ["rbind"] }),
        );
        assert!(bind.contains("bind mount of '/home' at '/x'") && bind.contains("--isolation container"), "{bind}");
        let overlay = refused(serde_json::json!({ "destination": "/x", "type": "overlay", "source": "overlay" }));
        assert!(overlay.contains("'overlay' at '/x'"), "{overlay}");
        let gone =
            refused(serde_json::json!({ "destination": "/etc/hosts", "type": "bind", "source": "/nonexistent" }));
        assert!(gone.contains("cannot read '/nonexistent'"), "{gone}");
    }
}
