//! `--isolation microvm`: what is found and made on the host before a VM can run an image. The VMM itself,
//! `berth-vmm`, is a program of its own (`berth_runtime::executor`); it is asked for kernel and initramfs, which it knows how to make.
//!
//! A Linux guest has a kernel and files of its own. A process guest has none: the image's programs run in a VM, and the VMM, which
//! sits in a sandbox just like a container's, serves their system calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_images::{DiskFormat, Image, Store};
use berth_runtime::executor::{Executor, HostFile, Root};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::container::Container;
use crate::error::{Attempt as _, Error, Result};
use crate::guests;
use crate::launch;
use crate::options::{Guest, Isolation, Limits, Mount, MountSource, Options, Seccomp, UserNamespace};
use crate::paths::Roots;
use crate::spec;

/// What a person gives to have one.
const FLAG: &str = "--isolation microvm";
/// The VMM's binary.
pub(crate) const BINARY: &str = "berth-vmm";
/// Names the VMM where it is not found.
pub(crate) const BINARY_VARIABLE: &str = "BERTH_VMM";
/// What the VMM calls the file with the kernel.
pub(crate) const KERNEL: &str = "kernel";
/// What the VMM calls the file with the first root filesystem.
pub(crate) const INITRAMFS: &str = "initramfs";
/// Bytes of guest memory unless told otherwise.
const MEMORY: u64 = 256 << 20;
/// Most bytes of a process guest's memory unless told otherwise: it takes what it uses.
const PROCESS_MEMORY: u64 = 8 << 30;
/// The socket of a process guest's VMM in the container's volatile directory.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// The kernel's VMM.
const KVM: &str = "/dev/kvm";
/// Bytes the VMM may use beside the guest's memory, with what the kernel accounts to it: page tables, sockets, threads.
const MEMORY_OVERHEAD: i64 = 32 << 20;
/// The same for a process guest. Each thread that ran at once with others has a vCPU of its own, which stays: half a MiB of
/// kernel memory.
const PROCESS_OVERHEAD: i64 = 64 << 20;
/// Threads of the VMM beside its vCPUs', and processes of `exec`.
const PIDS_OVERHEAD: i64 = 64;

/// Refuses what the host's kernel would have to give: a Linux guest asks its own.
fn check(options: &Options) -> Result<()> {
    let shares_files = |mount: &Mount| matches!(mount.source, MountSource::Bind { .. } | MountSource::Volume { .. });
    let files = "the guest's kernel sees no directory of the host; give it a disk (--mount type=ext4,source=FILE,target=PATH), \
                 or use --guest process or --isolation container";
    spec::refuse(FLAG, &[(options.mounts.iter().any(shares_files), "a bind mount or volume")], files)?;
    let own = "the guest has a kernel of its own, which sees nothing of the host's; leave out one of them";
    let refused = [
        (!options.devices.is_empty(), "--device"),
        options.network.shared(),
        (options.pid_host, "--pid host"),
        (options.ipc_host, "--ipc host"),
        (options.uts_host, "--uts host"),
        (options.cgroup_host, "--cgroupns host"),
        (options.userns != UserNamespace::Host, "--userns"),
        (options.privileged, "--privileged"),
        (!options.sysctls.is_empty(), "--sysctl"),
        (options.seccomp != Seccomp::Default, "--security-opt seccomp"),
    ];
    Ok(spec::refuse(FLAG, &refused, own)?)
}

/// What a VM runs.
#[derive(Debug)]
pub(crate) enum Chosen {
    Linux(Kernel),
    Process,
}

/// The kernel for a guest on this host, with its initramfs.
#[derive(Debug, Deserialize)]
pub(crate) struct Kernel {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Whether the initramfs had to be made.
    is_new: bool,
    /// What the kernel can read the image from.
    root_format: DiskFormat,
}

/// Chooses the guest, completes the options by what it has where nothing was asked for, and finds what it needs, before
/// anything is pulled or made. Also says what a person should know about the choice.
pub(crate) fn choose(roots: &Roots, options: &mut Options) -> Result<(Option<Chosen>, Option<String>)> {
    let needs_linux = needs_linux(options);
    if let Some(flag) = needs_linux.filter(|_| !options.has_own_kernel()) {
        let advice = "is for microVMs with a Linux guest: add --isolation microvm --guest linux";
        return Err(Error::Invalid(format!("{flag} {advice}")));
    }
    if options.isolation != Isolation::Microvm {
        return Ok((None, None));
    }
    let kernel = match options.guest {
        Guest::Process => return Ok((Some(Chosen::Process), None)),
        Guest::Linux => {
            check(options)?;
            kernel(roots, options)?
        }
        Guest::Auto => match kernel(roots, options) {
            Ok(kernel) => {
                check(options)?;
                kernel
            }
            Err(error) if needs_linux.is_none() && Path::new(KVM).exists() => {
                options.guest = Guest::Process;
                return Ok((Some(Chosen::Process), Some(format!("using --guest process: {error}"))));
            }
            Err(error) => return Err(error),
        },
    };
    options.guest = Guest::Linux;
    options.limits.memory.get_or_insert(MEMORY);
    Ok((Some(Chosen::Linux(kernel)), None))
}

/// The flag, if any, that only a guest with a kernel can follow.
fn needs_linux(options: &Options) -> Option<&'static str> {
    let has_disk = options.mounts.iter().any(|mount| matches!(mount.source, MountSource::Disk { .. }));
    [(options.kernel.is_some(), "--kernel"), (has_disk, "a disk (--mount type=ext4 or type=erofs)")]
        .into_iter()
        .find_map(|(is_set, flag)| is_set.then_some(flag))
}

fn kernel(roots: &Roots, options: &Options) -> Result<Kernel> {
    let program = launch::find(BINARY, BINARY_VARIABLE)?;
    let mut command = Command::new(&program);
    command.arg("initramfs").arg(roots.guests());
    if let Some(kernel) = &options.kernel {
        command.arg("--kernel").arg(kernel);
    }
    let output = command.output().attempt(|| format!("execute {}", program.display()))?;
    if !output.status.success() {
        return Err(Error::Invalid(message(&output.stderr)));
    }
    let kernel: Kernel = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::Invalid(format!("{BINARY} answers something else than a kernel: {error}")))?;
    if kernel.is_new {
        // What cannot be removed now may be the next time; it keeps nobody from running.
        let _ = guests::prune(roots);
    }
    Ok(kernel)
}

/// What the VMM says is wrong.
pub(crate) fn message(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim_start_matches("berth-vmm: ").trim().to_owned()
}

/// The executor that runs the image in the VM.
pub(crate) fn executor(
    store: &Store,
    image: &Image,
    chosen: Chosen,
    options: &Options,
    live_dir: &Path,
) -> Result<Executor> {
    match chosen {
        Chosen::Linux(kernel) => linux(store, image, kernel, options, live_dir),
        Chosen::Process => process(options, live_dir),
    }
}

/// The image's programs see the sandbox's files, through the VMM, which is made just like a container's process.
fn process(options: &Options, live_dir: &Path) -> Result<Executor> {
    Ok(Executor {
        program: launch::find(BINARY, BINARY_VARIABLE)?,
        prefix: "process-".to_owned(),
        root: Root::Image,
        files: BTreeMap::from([("kvm".to_owned(), HostFile { path: KVM.into(), write: true })]),
        sockets: BTreeMap::new(),
        control: Some(live_dir.join(CONTROL_SOCKET)),
        limits_memory: true,
        settings: process_limits(&options.limits),
        memory_overhead: PROCESS_OVERHEAD,
        pids_overhead: PIDS_OVERHEAD,
    })
}

/// What a process guest is held to by its VMM: its settings, and what it is told when they change.
pub(crate) fn process_limits(limits: &Limits) -> Value {
    json!({
        "memory": limits.memory.unwrap_or(PROCESS_MEMORY),
        "threads": limits.pids.filter(|&pids| pids > 0),
    })
}

fn linux(store: &Store, image: &Image, kernel: Kernel, options: &Options, live_dir: &Path) -> Result<Executor> {
    let file = |path: PathBuf, write| HostFile { path, write };
    let mut files = BTreeMap::from([
        ("kvm".to_owned(), file(KVM.into(), true)),
        (KERNEL.to_owned(), file(kernel.kernel, false)),
        (INITRAMFS.to_owned(), file(kernel.initramfs, false)),
        ("root".to_owned(), file(store.disk(image, kernel.root_format)?, false)),
    ]);
    for mount in &options.mounts {
        if let MountSource::Disk { path, .. } = &mount.source {
            let target = spec::clean_target(&mount.target)?.display().to_string();
            files.insert(target, file(path.clone(), !mount.read_only));
        }
    }
    files.extend(
        ["hosts", "hostname", "resolv.conf"].map(|name| (format!("/etc/{name}"), file(live_dir.join(name), false))),
    );
    let vcpus = options.limits.cpus.map_or(1, |cpus| cpus.ceil().clamp(1.0, 255.0) as u8);
    Ok(Executor {
        program: launch::find(BINARY, BINARY_VARIABLE)?,
        prefix: String::new(),
        root: Root::Empty,
        files,
        sockets: BTreeMap::new(),
        control: None,
        limits_memory: false,
        settings: json!({ "memory": options.limits.memory.unwrap_or(MEMORY), "vcpus": vcpus, "console": false }),
        memory_overhead: MEMORY_OVERHEAD,
        pids_overhead: PIDS_OVERHEAD + i64::from(vcpus),
    })
}

/// Refuses what would need to see into the guest's file systems or change its size.
pub(crate) fn refuse(container: &Container, what: &str, advice: &str) -> Result<()> {
    if !container.record.options.has_own_kernel() {
        return Ok(());
    }
    let name = container.name();
    Err(Error::Invalid(format!("cannot {what} {name}: it is a microVM, whose files and memory are its own; {advice}")))
}
