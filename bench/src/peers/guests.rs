//! Other VMMs. They boot the kernel that berth's own guests have; the files of the image are its initramfs, and the command is its
//! init: nothing else runs in the guest, and it has no disk and no network.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cpio::newc::{Builder, trailer};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::room::Room;
use crate::timed;

/// What the kernel says when its init has ended well.
pub const ENDED_WELL: &str = "exitcode=0x00000000";
/// Memory of a guest, MiB: as much as `berth run` gives one.
const MEMORY: u64 = 256;
/// Most bytes of an image: unpacked, they and the archive have to be in the guest's memory with the kernel.
const MOST_BYTES: u64 = 64 << 20;
/// Where a command is looked for that is no path.
const PATH: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// What is booted.
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// The end of the kernel's command line: what the init is.
    init: String,
}

impl Boot {
    /// Finds berth's kernel and packs the files under `root`, where `command` is.
    pub fn prepare(room: &Room<'_>, root: &Path, command: &[String]) -> Result<Self> {
        let mut program = Command::new(room.program("berth-vmm"));
        program.arg("initramfs").arg(room.roots.guests());
        let line = timed::line(&program);
        let found: Value = serde_json::from_str(&timed::prepare(program)?).unwrap_or_default();
        let kernel = found["kernel"].as_str().map(PathBuf::from);
        let reason = || Error::Failed { command: line, reason: "it names no kernel".to_owned() };
        let initramfs = room.scratch().join("guest.cpio");
        let init = init(root, command).map_err(|reason| refused(command, reason))?;
        if size(root).map_err(Error::file("measure", root))? > MOST_BYTES {
            return Err(refused(
                command,
                format!("the image has more than {} MiB, for an initramfs", MOST_BYTES >> 20),
            ));
        }
        File::create(&initramfs)
            .and_then(|file| pack(root, BufWriter::new(file)))
            .map_err(Error::file("write", &initramfs))?;
        Ok(Self { kernel: kernel.ok_or_else(reason)?, initramfs, init })
    }

    /// The command line of QEMU's machine without a PC in it (its `docs/system/i386/microvm.rst`).
    pub fn qemu(&self, program: &Path) -> Vec<String> {
        let flags = format!(
            "-M microvm -accel kvm -cpu host -smp 1 -m {MEMORY} -nodefaults -no-user-config -display none -no-reboot \
             -serial stdio"
        );
        let mut words = vec![text(program)];
        words.extend(flags.split(' ').map(str::to_owned));
        let files = [("-kernel", text(&self.kernel)), ("-initrd", text(&self.initramfs))];
        words.extend(files.into_iter().flat_map(|(flag, file)| [flag.to_owned(), file]));
        words.extend(["-append".to_owned(), self.line("reboot=t")]);
        words
    }

    /// The command line of Firecracker, whose configuration is a file (its `docs/getting-started.md`); it takes no bzImage.
    pub fn firecracker(&self, program: &Path, room: &Room<'_>) -> Result<Vec<String>> {
        let kernel = room.scratch().join("vmlinux");
        let file = File::create(&kernel).map_err(Error::file("make", &kernel))?;
        let mut unpack = Command::new(room.program("berth-vmm"));
        unpack.arg("vmlinux").arg(&self.kernel).stdout(file).stderr(Stdio::piped());
        let output = unpack.output().map_err(Error::system("execute berth-vmm"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Failed { command: timed::line(&unpack), reason: said });
        }
        let config = json!({
            "boot-source": {
                "kernel_image_path": kernel, "initrd_path": self.initramfs, "boot_args": self.line("reboot=k pci=off"),
            },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY },
            "drives": [],
        });
        let path = room.scratch().join("firecracker.json");
        fs::write(&path, config.to_string()).map_err(Error::file("write", &path))?;
        Ok([&text(program), "--no-api", "--level", "Error", "--config-file", &text(&path)].map(str::to_owned).into())
    }

    /// The kernel's command line: it says nothing but what its last moment is, and then ends its machine.
    fn line(&self, reboot: &str) -> String {
        format!("console=ttyS0 loglevel=1 edd=off panic=-1 {reboot} {}", self.init)
    }
}

/// How a kernel is told to make a command its init.
fn init(root: &Path, command: &[String]) -> Result<String, String> {
    let (program, rest) = command.split_first().ok_or("there is no command")?;
    // A kernel splits its command line at blanks; words of it may be in double quotes, and nothing else quotes these.
    if let Some(word) = command.iter().find(|word| word.is_empty() || word.contains([' ', '\t', '\n', '"'])) {
        return Err(format!("a kernel's command line cannot have the word '{word}' in it"));
    }
    let places = PATH.map(|dir| format!("{dir}/{program}"));
    let found = match program.strip_prefix('/') {
        Some(path) => Some(path),
        None => places.iter().map(String::as_str).find(|path| root.join(path).symlink_metadata().is_ok()),
    };
    let found = found.ok_or_else(|| format!("there is no '{program}' in the image"))?;
    Ok([&[format!("rdinit=/{found} --")], rest].concat().join(" "))
}

/// Bytes of all regular files.
fn size(root: &Path) -> io::Result<u64> {
    let mut total = 0;
    for_each(root, Path::new(""), &mut |_, path| {
        let data = path.symlink_metadata()?;
        total += if data.is_file() { data.len() } else { 0 };
        Ok(())
    })?;
    Ok(total)
}

/// Writes everything under `root` as the archive that a kernel unpacks (`Documentation/driver-api/early-userspace/buffer-format.rst`).
/// Names of one file become files of their own.
fn pack(root: &Path, mut to: impl Write) -> io::Result<()> {
    for_each(root, Path::new(""), &mut |name, path| {
        let data = path.symlink_metadata()?;
        let kind = data.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(path)?.as_os_str().as_bytes().to_vec()
        } else if kind.is_file() {
            fs::read(path)?
        } else {
            Vec::new()
        };
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name = name.to_str().ok_or_else(|| io::Error::other(format!("{} is no UTF-8", name.display())))?;
        let mut entry = Builder::new(name).mode(data.mode()).uid(data.uid()).gid(data.gid());
        entry = entry.nlink(if kind.is_dir() { 2 } else { 1 });
        if kind.is_block_device() || kind.is_char_device() {
            let device = data.rdev();
            entry = entry.rdev_major(rustix::fs::major(device)).rdev_minor(rustix::fs::minor(device));
        }
        let mut file = entry.write(&mut to, length);
        file.write_all(&content)?;
        file.finish().map(drop)
    })?;
    trailer(&mut to)?;
    to.flush()
}

/// Everything under a directory, directories before what is in them: its name there, and its path.
fn for_each(root: &Path, dir: &Path, act: &mut impl FnMut(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let name = dir.join(entry?.file_name());
        let path = root.join(&name);
        act(&name, &path)?;
        if path.symlink_metadata()?.is_dir() {
            for_each(root, &name, act)?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn refused(command: &[String], reason: String) -> Error {
    Error::Failed { command: command.join(" "), reason }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cpio::newc::Reader;

    use super::*;

    #[test]
    fn files_links_and_folders_are_packed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/busybox"), "program").unwrap();
        symlink("busybox", root.path().join("bin/echo")).unwrap();
        let mut archive = Vec::new();
        pack(root.path(), &mut archive).unwrap();
        let (mut rest, mut found) = (&archive[..], Vec::new());
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            io::Read::read_to_string(&mut reader, &mut content).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode() & 0o170_000, content));
            rest = reader.finish().unwrap();
        }
        found[1..].sort();
        let expected =
            [("bin", 0o040_000, ""), ("bin/busybox", 0o100_000, "program"), ("bin/echo", 0o120_000, "busybox")];
        assert_eq!(found, expected.map(|(name, kind, content)| (name.to_owned(), kind, content.to_owned())));
        assert_eq!(size(root.path()).unwrap(), 7);
    }

    #[test]
    fn a_command_is_an_init() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        symlink("busybox", root.path().join("bin/echo")).unwrap();
        let init = |words: &[&str]| init(root.path(), &words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert_eq!(init(&["echo", "started", "x"]), Ok("rdinit=/bin/echo -- started x".to_owned()));
        assert_eq!(init(&["/opt/tool"]), Ok("rdinit=/opt/tool --".to_owned()));
        for wrong in [&["cat"][..], &["echo", "a b"], &["echo", "\""], &["echo", ""], &[]] {
            assert!(init(wrong).is_err(), "{wrong:?}");
        }
    }
}
