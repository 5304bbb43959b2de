//! The root filesystem: the image's disk, read-only, under a writable layer.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};

use berth_runtime::error::{Attempt as _, Error, Result};
use nix::mount::{MsFlags, mount};

/// Serial number of the disk with the image.
const IMAGE: &str = "root";
/// Serial number of the disk for what is written, ext4; without one it is kept in memory.
const WRITABLE: &str = "writable";
/// Where control groups are.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// What the devices of `/dev/fd` and the standard streams are.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts something, where there is no such directory after making it.
pub fn mount_at(source: &str, target: &Path, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    let attempt = || format!("mount {source} at {}", target.display());
    fs::create_dir_all(target).attempt(attempt)?;
    mount(Some(source), target, Some(kind), flags, Some(data)).attempt(attempt)
}

/// `/proc`, `/sys` and `/dev` below `root`.
pub fn mount_kernel_file_systems(root: &str) -> Result<()> {
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let at = |path: &str| PathBuf::from(format!("{root}{path}"));
    mount_at("proc", &at("/proc"), "proc", closed, "")?;
    mount_at("sysfs", &at("/sys"), "sysfs", closed, "")?;
    mount_at("dev", &at("/dev"), "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// Makes the image the root filesystem of this process and its children.
pub fn enter() -> Result<()> {
    let (lower, memory, root) = (Path::new("/lower"), Path::new("/memory"), Path::new("/root"));
    let image = disk(IMAGE)?;
    mount_at(&image, lower, format(&image)?, MsFlags::MS_RDONLY, "")?;
    match disk(WRITABLE) {
        Ok(device) => mount_at(&device, memory, "ext4", MsFlags::MS_NOATIME, "")?,
        Err(_) => mount_at("tmpfs", memory, "tmpfs", MsFlags::empty(), "mode=0755")?,
    }
    for directory in ["upper", "work"] {
        let path = memory.join(directory);
        fs::create_dir_all(&path).attempt(|| format!("create {}", path.display()))?;
    }
    mount_at(
        "overlay",
        root,
        "overlay",
        MsFlags::empty(),
        "lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work",
    )?;
    mount_kernel_file_systems("/root")?;
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at("devpts", &root.join("dev/pts"), "devpts", terminals, "ptmxmode=0666,mode=0620,gid=5")?;
    mount_at("shm", &root.join("dev/shm"), "tmpfs", closed, "mode=1777")?;
    switch_to(root)?;
    for (target, link) in LINKS {
        // The kernel makes none of them, and an image's own do not show.
        symlink(target, link).attempt(|| format!("make the link {link}"))?;
    }
    // Conveniences that a small kernel may lack.
    let _ = mount_at("mqueue", Path::new("/dev/mqueue"), "mqueue", closed, "");
    let _ = mount_at("cgroup2", Path::new(CGROUPS), "cgroup2", closed, "");
    Ok(())
}

/// Which of the two file systems the image's disk has.
fn format(device: &str) -> Result<&'static str> {
    /// What the superblock of erofs begins with, and where.
    const EROFS: (u64, u32) = (1024, 0xe0f5_e1e2);

    let mut magic = [0; 4];
    fs::File::open(device)
        .and_then(|disk| disk.read_exact_at(&mut magic, EROFS.0))
        .attempt(|| format!("read {device}"))?;
    Ok(if u32::from_le_bytes(magic) == EROFS.1 { "erofs" } else { "ext4" })
}

/// The initramfs cannot be unmounted, so the new root is moved over it (`switch_root(8)`).
fn switch_to(root: &Path) -> Result<()> {
    let attempt = || "make the image the root filesystem";
    // Its memory is given back, but for what runs.
    fs::remove_file("/init").attempt(attempt)?;
    nix::unistd::chdir(root).attempt(attempt)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).attempt(attempt)?;
    nix::unistd::chroot(".").attempt(attempt)?;
    nix::unistd::chdir("/").attempt(attempt)
}

/// The device of the virtio disk with a serial number.
pub fn disk(serial: &str) -> Result<String> {
    let attempt = || "list the disks in /sys/block";
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").attempt(attempt)? {
        let entry = entry.attempt(attempt)?;
        let Ok(text) = fs::read_to_string(entry.path().join("serial")) else { continue };
        if text.trim_end() == serial {
            return Ok(format!("/dev/{}", entry.file_name().display()));
        }
        found.push(text.trim_end().to_owned());
    }
    Err(Error::Invalid(format!("the machine has no disk with the serial number '{serial}', only {found:?}")))
}
