//! The first root filesystem of a Linux guest: the init, and the modules of the host's kernel that it loads.
//!
//! Everything in it is the host's own, nothing comes from an image, so it is made outside the sandbox, in the prepare step. It is
//! kept, under a name that says what it was made of, until that changes. So is the kernel, as it is when it is unpacked.

mod archive;
mod kernel;
mod modules;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

pub use kernel::Kernel;

/// The directory with the modules, in the initramfs.
pub const MODULES: &str = "modules";
/// The file with their names, in the order in which they are loaded.
pub const ORDER: &str = "modules/order";

/// What every guest needs; what is built into the kernel is not looked for.
const REQUIRED: [&str; 4] = ["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "overlay"];
/// What a guest does without where the kernel does.
const WELCOME: [&str; 3] = ["virtio_rng", "virtio_balloon", "ext4"];
/// What a network card needs.
const NETWORK: &str = "virtio_net";

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {attempt} {}: {error}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// No kernel will do.
    #[error(
        "there is no Linux kernel with modules for a microVM: {} has {found:?}; install one (on Debian, linux-image-cloud-amd64) \
         or give one with --kernel",
        boot.display()
    )]
    NoKernel {
        /// Where kernels are looked for.
        boot: PathBuf,
        /// What is there.
        found: Vec<String>,
    },
    /// It cannot be told which modules belong to a kernel.
    #[error("{} does not say which version of Linux it is; is it a bzImage, or called vmlinux-VERSION?", path.display())]
    NoVersion {
        /// The kernel.
        path: PathBuf,
    },
    /// A module is missing.
    #[error("the kernel {version} cannot run in a microVM: {} has no module {module}", directory.display())]
    NoModule {
        /// The kernel.
        version: String,
        /// Where its modules are.
        directory: PathBuf,
        /// What is missing.
        module: String,
    },
    /// A module is compressed in a way berth cannot undo.
    #[error("cannot unpack the kernel module {}: {reason}", path.display())]
    Compressed {
        /// The module.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The kernel cannot be unpacked.
    #[error("cannot unpack the kernel {} to {}: {error}", kernel.display(), path.display())]
    Unpack {
        /// The kernel.
        kernel: PathBuf,
        /// Where to.
        path: PathBuf,
        /// Why.
        error: crate::boot::Error,
    },
}

impl Error {
    fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { attempt, path: path.to_owned(), error }
    }
}

/// An initramfs.
#[derive(Debug)]
pub struct Initramfs {
    /// Where it is kept.
    pub path: PathBuf,
    /// Open for reading, so that it does not matter who removes it.
    pub file: File,
    /// Whether it was not there before.
    pub is_new: bool,
    /// The file system that the image's disk must have.
    pub root_format: &'static str,
}

/// Opens the initramfs for a kernel with the program `init`, from the directory `cache` or, if it is not there, after making it.
/// `with_network`: with what a network card needs.
pub fn open(kernel: &Kernel, init: &Path, with_network: bool, cache: &Path) -> Result<Initramfs, Error> {
    let required: Vec<&str> = REQUIRED.into_iter().chain(with_network.then_some(NETWORK)).collect();
    let (modules, root_format) = with_root_format(kernel, &required)?;
    let name =
        format!("{}-{}.cpio", kernel.version, key(std::iter::once(init).chain(modules.iter().map(PathBuf::as_path)))?);
    let (path, file, is_new) = keep(cache, &name, |file, path| {
        file.write_all(&archive::build(init, &modules)?).map_err(Error::io("write", path))
    })?;
    Ok(Initramfs { path, file, is_new, root_format })
}

/// Opens the file `name` of the directory `cache`, after making it if it is not there: its path, and whether it is new.
fn keep(
    cache: &Path,
    name: &str,
    make: impl FnOnce(&mut File, &Path) -> Result<(), Error>,
) -> Result<(PathBuf, File, bool), Error> {
    let path = cache.join(name);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => {
            let file = other.map_err(Error::io("open", &path))?;
            // When it was last used, for whoever removes old ones; a cache that only another user can change is none the worse.
            let _ = file.set_modified(SystemTime::now());
            return Ok((path, file, false));
        }
    }
    fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    let unfinished = cache.join(format!(".{name}.{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let mut file = file.map_err(Error::io("create", &unfinished))?;
    let made =
        make(&mut file, &unfinished).and_then(|()| fs::rename(&unfinished, &path).map_err(Error::io("create", &path)));
    if let Err(error) = made {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    io::Seek::rewind(&mut file).map_err(Error::io("rewind", &path))?;
    Ok((path, file, true))
}

/// The modules, with those for the image's disk, and how that is formatted: as erofs or, if the kernel lacks it, as ext4.
fn with_root_format(kernel: &Kernel, required: &[&str]) -> Result<(Vec<PathBuf>, &'static str), Error> {
    let with = |format| Ok((modules::resolve(kernel, &[required, &[format]].concat(), &WELCOME)?, format));
    match with("erofs") {
        // If there is neither, it is erofs that should be installed.
        Err(missing @ Error::NoModule { .. }) => with("ext4").or(Err(missing)),
        other => other,
    }
}

/// Says what files there are without reading them: a file that changes has another time or number.
fn key<'a>(files: impl Iterator<Item = &'a Path>) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for path in files {
        let stat = fs::metadata(path).map_err(Error::io("examine", path))?;
        hash.update(path.as_os_str().as_encoded_bytes());
        for number in [stat.size(), stat.ino(), stat.dev(), stat.ctime() as u64, stat.ctime_nsec() as u64] {
            hash.update(number.to_le_bytes());
        }
    }
    let hash: [u8; 32] = hash.finalize().into();
    Ok(hash.first_chunk().map_or_else(String::new, |front| format!("{:032x}", u128::from_be_bytes(*front))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with modules, none of them real.
    pub(super) fn fake(dir: &Path) -> Kernel {
        let modules = dir.join("modules/6.1.0-1-test");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        let names =
            ["virtio", "virtio_blk", "vmw_vsock_virtio_transport", "erofs", "libcrc32c", "virtio-rng", "virtio_net"];
        for name in names {
            fs::write(modules.join(format!("kernel/{name}.ko")), format!("module {name}")).unwrap();
        }
        fs::write(
            modules.join("modules.dep"),
            "kernel/virtio.ko:\nkernel/virtio_blk.ko: kernel/virtio.ko\nkernel/erofs.ko: kernel/libcrc32c.ko\n\
             kernel/libcrc32c.ko:\nkernel/vmw_vsock_virtio_transport.ko: kernel/virtio.ko\nkernel/virtio-rng.ko: kernel/virtio.ko\n\
             kernel/virtio_net.ko: kernel/virtio.ko\n",
        )
        .unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/drivers/virtio/virtio_mmio.ko\nkernel/fs/overlay.ko\n")
            .unwrap();
        Kernel { image: dir.join("vmlinuz"), version: "6.1.0-1-test".to_owned(), modules }
    }

    #[test]
    fn it_is_made_once_and_anew_when_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, cache, init) = (fake(dir.path()), dir.path().join("cache"), dir.path().join("init"));
        fs::write(&init, "program").unwrap();
        let is_new = || open(&kernel, &init, false, &cache).unwrap().is_new;
        assert!(is_new() && !is_new());
        let inode = |with_network| open(&kernel, &init, with_network, &cache).unwrap().file.metadata().unwrap().ino();
        let first = inode(false);
        assert_eq!(inode(false), first);
        assert_ne!(inode(true), first);
        fs::write(&init, "another program").unwrap();
        assert_ne!(inode(false), first);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 3);
        fs::remove_file(kernel.modules.join("kernel/erofs.ko")).unwrap();
        let error = open(&kernel, &init, false, &cache).unwrap_err().to_string();
        assert!(error.contains("erofs.ko"), "{error}");
    }

    #[test]
    fn a_kernel_is_unpacked_once() {
        let Ok(kernel) = Kernel::newest(Path::new("/boot"), Path::new("/lib/modules")) else {
            eprintln!("NOT TESTED: unpacking a real kernel: there is none in /boot; scripts/setup test installs one");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let (path, is_new) = kernel.unpacked(dir.path()).unwrap();
        assert_eq!(kernel.unpacked(dir.path()).unwrap(), (path.clone(), false));
        assert_eq!(is_new, path.starts_with(dir.path()));
        let magic = fs::read(&path).unwrap()[..4].to_vec();
        assert!(!is_new || magic == b"\x7fELF", "{magic:?}");
    }

    #[test]
    fn a_kernel_that_cannot_be_unpacked_is_booted_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path());
        for content in ["\x7fELF and so on", "no kernel", ""] {
            fs::write(&kernel.image, content).unwrap();
            assert_eq!(kernel.unpacked(&dir.path().join("cache")).unwrap(), (kernel.image.clone(), false));
        }
        let left = fs::read_dir(dir.path().join("cache")).map_or(0, Iterator::count);
        assert_eq!(left, 0);
    }

    #[test]
    fn a_kernel_without_erofs_gets_a_disk_of_ext4() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, init) = (fake(dir.path()), dir.path().join("init"));
        fs::write(&init, "program").unwrap();
        let format = || open(&kernel, &init, false, dir.path()).map(|made| made.root_format);
        assert_eq!(format().unwrap(), "erofs");
        let list = kernel.modules.join("modules.dep");
        let without = fs::read_to_string(&list).unwrap().replace("kernel/erofs.ko", "kernel/other.ko");
        fs::write(&list, without).unwrap();
        let error = format().unwrap_err().to_string();
        assert!(error.contains("no module erofs"), "{error}");
        let built_in = kernel.modules.join("modules.builtin");
        fs::write(&built_in, fs::read_to_string(&built_in).unwrap() + "kernel/fs/ext4/ext4.ko\n").unwrap();
        assert_eq!(format().unwrap(), "ext4");
    }
}
