//! The mounts of a container, in the order in which they are made: the layers, the kernel's file systems, then what
//! the person asked for and the three files below `/etc`, parents before what is below them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use crate::options::{IdRange, Isolation, Options, UserNamespace};
use crate::volumes::{ResolvedMount, ResolvedSource};

use super::{Error, Inputs};

/// What `/dev/shm` holds at most unless told otherwise, bytes.
const SHM_SIZE: u64 = 64 << 20;
/// The group of terminals, `tty` in every distribution.
const TTY_GROUP: u32 = 5;
/// What a file system that only holds places to mount on has, as a mount option.
const MODULE_ROOT_SIZE: &str = "size=64k";

pub(super) fn mounts(inputs: &Inputs) -> Result<Vec<Mount>, Error> {
    let wanted = sorted(inputs.mounts)?;
    if inputs.options.isolation == Isolation::Wasm {
        return Ok(for_module(inputs, wanted));
    }
    let mut mounts = vec![layers(inputs)];
    // What a person puts at `/dev` is to be seen there as it is, without berth's own mounts below it.
    let hidden = |mount: &Mount| wanted.iter().any(|(target, _)| mount.destination().starts_with(target));
    mounts.extend(kernel(inputs.options).into_iter().filter(|mount| !hidden(mount)));
    let replaced = |mount: &Mount| wanted.iter().any(|(target, _)| mount.destination() == target);
    let mut last: Vec<Mount> = etc(inputs.live_dir).into_iter().filter(|mount| !replaced(mount)).collect();
    last.extend(wanted.into_iter().map(|(target, mount)| user(target, mount, inputs.options)));
    last.sort_by(|a, b| a.destination().cmp(b.destination()));
    mounts.extend(last);
    Ok(mounts)
}

/// A module sees directories and nothing of the kernel's. Without an image's files there is only what they are mounted on.
fn for_module(inputs: &Inputs, wanted: Vec<(PathBuf, &ResolvedMount)>) -> Vec<Mount> {
    let empty = || mount("/", "tmpfs", "tmpfs", ["nosuid", "nodev", "noexec", "mode=755", MODULE_ROOT_SIZE]);
    let mut mounts = vec![if inputs.lower_dirs.is_empty() { empty() } else { layers(inputs) }];
    if inputs.options.tty {
        mounts.push(mount("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "mode=755", MODULE_ROOT_SIZE]));
        mounts.push(mount("/dev/pts", "devpts", "devpts", terminals(inputs.options)));
    }
    mounts.extend(wanted.into_iter().map(|(target, mount)| user(target, mount, inputs.options)));
    mounts
}

/// The options of the filesystem of terminals.
fn terminals(options: &Options) -> Vec<&'static str> {
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if options.userns.range().is_none_or(|range| range.count > TTY_GROUP) {
        pts.push("gid=5");
    }
    pts
}

/// What mounts on the host the container's mounts follow or pass on: the widest that any bind mount asks for.
pub(super) fn rootfs_propagation(mounts: &[ResolvedMount]) -> Option<String> {
    let asked = |kinds: [&str; 2]| {
        mounts.iter().any(|mount| match &mount.source {
            ResolvedSource::Path { propagation: Some(asked), .. } => kinds.contains(&asked.as_str()),
            _ => false,
        })
    };
    if asked(["shared", "rshared"]) {
        Some(String::from("shared"))
    } else if asked(["slave", "rslave"]) {
        Some(String::from("rslave"))
    } else {
        None
    }
}

/// The image's layers with the container's own on top, mounted over `root.path`.
fn layers(inputs: &Inputs) -> Mount {
    let lower = inputs.lower_dirs.iter().map(PathBuf::as_path).chain([inputs.base]);
    let mut options: Vec<String> = lower.map(|layer| format!("lowerdir+={}", layer.display())).collect();
    options.push(format!("upperdir={}", inputs.dir.join("upper").display()));
    options.push(format!("workdir={}", inputs.dir.join("work").display()));
    if inputs.volatile {
        options.push(String::from("volatile"));
    }
    // Not read-only here: mount points may have to be made in it first; `root.readonly` closes it afterwards.
    options.extend(mapped(inputs.options, true));
    mount("/", "overlay", "overlay", options)
}

/// In a user namespace, the mount option that shows the ids of a filesystem as the container's: layers and volumes hold the
/// container's ids, whatever ids of the host these are.
fn mapped(options: &Options, holds_container_ids: bool) -> Option<String> {
    (holds_container_ids && options.userns != UserNamespace::Host).then(|| String::from("idmap"))
}

/// `/proc`, `/dev` and `/sys` with what is below them.
fn kernel(options: &Options) -> Vec<Mount> {
    let closed = ["nosuid", "noexec", "nodev"];
    let mut sys = closed.to_vec();
    if !options.privileged {
        sys.push("ro");
    }
    let mut cgroup = closed.to_vec();
    cgroup.push("relatime");
    if !options.privileged {
        cgroup.push("ro");
    }
    let mut mounts = vec![
        mount("/proc", "proc", "proc", closed),
        mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", terminals(options)),
    ];
    if options.ipc_host {
        mounts.push(mount("/dev/shm", "bind", "/dev/shm", ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"]));
    } else {
        let size = format!("size={}", options.shm_size.unwrap_or(SHM_SIZE));
        let shm = closed.into_iter().map(str::to_owned).chain([String::from("mode=1777"), size]);
        mounts.push(mount("/dev/shm", "tmpfs", "shm", shm));
    }
    // It shows the queues of the IPC namespace the container is in, its own or the host's.
    mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", closed));
    mounts.push(mount("/sys", "sysfs", "sysfs", sys));
    mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroup));
    mounts
}

/// The files that name the container and its neighbours; the container may write them.
fn etc(dir: &Path) -> Vec<Mount> {
    ["resolv.conf", "hostname", "hosts"]
        .into_iter()
        .map(|name| mount(format!("/etc/{name}"), "bind", dir.join(name), ["rbind", "rprivate", "rw"]))
        .collect()
}

/// One `-v`, `--mount`, `--tmpfs` or image volume.
fn user(target: PathBuf, asked: &ResolvedMount, options: &Options) -> Mount {
    match &asked.source {
        ResolvedSource::Path { path, propagation, idmap } => {
            // 'rro' covers what is mounted below the source too, which 'ro' leaves writable.
            let access = if asked.read_only { "rro" } else { "rw" };
            let propagation = propagation.as_deref().unwrap_or("rprivate");
            let all = ["rbind", access, propagation].map(String::from).into_iter().chain(mapped(options, *idmap));
            mount(target, "bind", path, all)
        }
        ResolvedSource::Tmpfs { options } => {
            let mut all: Vec<String> = Vec::new();
            for (closed, open) in [("nosuid", "suid"), ("noexec", "exec"), ("nodev", "dev")] {
                if !options.iter().any(|option| option == open || option == closed) {
                    all.push(closed.to_owned());
                }
            }
            all.extend(options.iter().cloned());
            if asked.read_only && !all.iter().any(|option| option == "ro") {
                all.push(String::from("ro"));
            }
            mount(target, "tmpfs", "tmpfs", all)
        }
        ResolvedSource::Disk { path, filesystem } => {
            let access = if asked.read_only { "ro" } else { "rw" };
            mount(target, filesystem.as_str(), path, [access, "nosuid", "nodev"])
        }
    }
}

/// The person's mounts with parents before what is below them.
fn sorted(mounts: &[ResolvedMount]) -> Result<Vec<(PathBuf, &ResolvedMount)>, Error> {
    let targets = mounts.iter().map(|mount| mount.target.as_str());
    let order = sorted_targets(targets)?;
    Ok(order.into_iter().map(|(target, index)| (target, &mounts[index])).collect())
}

/// Clean targets, each with its place among `targets`, parents before what is below them. Refuses two that are equal.
pub(super) fn sorted_targets<'a>(targets: impl Iterator<Item = &'a str>) -> Result<Vec<(PathBuf, usize)>, Error> {
    let mut sorted = Vec::new();
    for (index, target) in targets.enumerate() {
        sorted.push((clean_target(target)?, index));
    }
    // Paths compare by their parts, so a parent comes before its children, and equal targets lie side by side.
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(Error::DuplicateMount { target: pair[0].0.display().to_string() }),
        None => Ok(sorted),
    }
}

/// A path in the container without `.`, `..` and doubled `/`. Refuses relative paths and the root itself.
pub fn clean_target(target: &str) -> Result<PathBuf, Error> {
    let refused = || Error::MountTarget { target: target.to_owned() };
    if !target.starts_with('/') || target.contains('\0') {
        return Err(refused());
    }
    let mut clean = PathBuf::from("/");
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            name => clean.push(name),
        }
    }
    if clean == Path::new("/") { Err(refused()) } else { Ok(clean) }
}

pub(super) fn id_mapping(range: IdRange) -> LinuxIdMapping {
    LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(range.first)
        .size(range.count)
        .build()
        .expect("the builder requires nothing")
}

fn mount<S: Into<String>>(
    destination: impl Into<PathBuf>,
    kind: &str,
    source: impl Into<PathBuf>,
    options: impl IntoIterator<Item = S>,
) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.into_iter().map(Into::into).collect()));
    mount
}
