//! The host's kernels.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{Error, keep, key};
use crate::boot;

/// A kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The file to boot.
    pub image: PathBuf,
    /// What it calls itself, as `uname -r` shows it.
    pub version: String,
    /// The directory with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel in `boot` (`/boot`) that has modules in `modules` (`/lib/modules`).
    pub fn newest(boot: &Path, modules: &Path) -> Result<Self, Error> {
        let mut found = Vec::new();
        for entry in fs::read_dir(boot).map_err(Error::io("read", boot))? {
            let name = entry.map_err(Error::io("read", boot))?.file_name();
            found.extend(name.to_str().filter(|name| version_in_name(name).is_some()).map(str::to_owned));
        }
        found.sort_by(|a, b| compare(a, b));
        let has_modules = |name: &&String| {
            version_in_name(name).is_some_and(|version| modules.join(version).join("modules.dep").exists())
        };
        match found.iter().rev().find(has_modules) {
            Some(name) => Self::at(&boot.join(name), modules),
            None => Err(Error::NoKernel { boot: boot.to_owned(), found }),
        }
    }

    /// The kernel in the file `image`, with its modules in `modules` (`/lib/modules`).
    pub fn at(image: &Path, modules: &Path) -> Result<Self, Error> {
        let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = version_of_bzimage(image)?.or_else(|| version_in_name(name).map(str::to_owned));
        let version = version.ok_or_else(|| Error::NoVersion { path: image.to_owned() })?;
        let modules = modules.join(&version);
        Ok(Self { image: image.to_owned(), version, modules })
    }
}

impl Kernel {
    /// The file to boot so that no start has to unpack it, kept in the directory `cache`, and whether it is new there. What is no
    /// bzImage, or is packed in a way that is left to the guest, is booted as it is.
    pub fn unpacked(&self, cache: &Path) -> Result<(PathBuf, bool), Error> {
        let mut image = File::open(&self.image).map_err(Error::io("open", &self.image))?;
        if !boot::is_unpackable(&image).unwrap_or(false) {
            return Ok((self.image.clone(), false));
        }
        let name = format!("{}-{}.vmlinux", self.version, key(std::iter::once(self.image.as_path()))?);
        let unpack = |file: &mut File, path: &Path| {
            let written = boot::write_vmlinux(&mut image, file);
            written.map_err(|error| Error::Unpack { kernel: self.image.clone(), path: path.to_owned(), error })
        };
        keep(cache, &name, unpack).map(|(path, _, is_new)| (path, is_new))
    }
}

fn version_in_name(name: &str) -> Option<&str> {
    name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-")).filter(|version| is_version(version))
}

/// One component of a path, and nothing else.
fn is_version(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_digit()) && text.len() < 128 && text.bytes().all(is_plain)
}

/// The version in the header of a bzImage (`Documentation/arch/x86/boot.rst`, `kernel_version`); `None`: it is no bzImage.
fn version_of_bzimage(image: &Path) -> Result<Option<String>, Error> {
    const MAGIC: std::ops::Range<usize> = 0x202..0x206;
    const VERSION: usize = 0x20e;
    /// Where the code of the boot sector ends, from which the version's place counts.
    const SECTOR: usize = 0x200;

    let file = File::open(image).map_err(Error::io("open", image))?;
    let mut header = vec![0; 0x8000];
    let mut length = 0;
    while length < header.len() {
        match file.read_at(&mut header[length..], length as u64).map_err(Error::io("read", image))? {
            0 => break,
            count => length += count,
        }
    }
    if header[MAGIC] != *b"HdrS" {
        return Ok(None);
    }
    let start = SECTOR + usize::from(u16::from_le_bytes([header[VERSION], header[VERSION + 1]]));
    let text = header.get(start..).unwrap_or_default();
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or_default();
    Ok(std::str::from_utf8(&text[..end]).ok().filter(|text| is_version(text)).map(str::to_owned))
}

/// Compares versions as a person does: runs of digits as numbers.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((first_a, rest_a), (first_b, rest_b)) = (run(a), run(b));
        let numbers = first_a.parse::<u64>().ok().zip(first_b.parse::<u64>().ok());
        let order = numbers.map_or_else(|| first_a.cmp(first_b), |(a, b)| a.cmp(&b));
        if order.is_ne() || (a.is_empty() && b.is_empty()) {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The run of digits, or of anything else, at the front.
fn run(text: &str) -> (&str, &str) {
    let is_number = text.starts_with(|first: char| first.is_ascii_digit());
    text.split_at(text.find(|next: char| next.is_ascii_digit() != is_number).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_with_modules_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path().join("boot"), dir.path().join("modules"));
        fs::create_dir(&boot).unwrap();
        let none = Kernel::newest(&boot, &modules).unwrap_err().to_string();
        assert!(none.contains("there is no Linux kernel with modules"), "{none}");
        for version in ["6.9.0-1", "6.10.0-2", "6.10.0-10", "6.11.0"] {
            fs::write(boot.join(format!("vmlinuz-{version}")), "kernel").unwrap();
        }
        fs::write(boot.join("vmlinuz.old"), "kernel").unwrap();
        for version in ["6.9.0-1", "6.10.0-2", "6.10.0-10"] {
            fs::create_dir_all(modules.join(version)).unwrap();
            fs::write(modules.join(version).join("modules.dep"), "").unwrap();
        }
        let kernel = Kernel::newest(&boot, &modules).unwrap();
        assert_eq!((kernel.version.as_str(), kernel.modules), ("6.10.0-10", modules.join("6.10.0-10")));
        fs::remove_dir_all(&modules).unwrap();
        let error = Kernel::newest(&boot, &modules).unwrap_err().to_string();
        assert!(error.contains("vmlinuz-6.11.0"), "{error}");
    }

    #[test]
    fn a_bzimage_says_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my-kernel");
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x500..0x512].copy_from_slice(b"6.1.0-56-test (bui");
        fs::write(&path, &image).unwrap();
        assert_eq!(Kernel::at(&path, dir.path()).unwrap().version, "6.1.0-56-test");
        for (place, version) in [(0x300_u16, &b"../../etc\0"[..]), (0xffff, b"6.1.0\0")] {
            image[0x20e..0x210].copy_from_slice(&place.to_le_bytes());
            image[0x500..0x500 + version.len()].copy_from_slice(version);
            fs::write(&path, &image).unwrap();
            assert!(matches!(Kernel::at(&path, dir.path()), Err(Error::NoVersion { .. })));
        }
        fs::write(&path, "short").unwrap();
        assert!(matches!(Kernel::at(&path, dir.path()), Err(Error::NoVersion { .. })));
        assert!(Kernel::at(&dir.path().join("gone"), dir.path()).unwrap_err().to_string().contains("cannot open"));
    }
}
