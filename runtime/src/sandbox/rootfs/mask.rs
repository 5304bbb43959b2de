//! `linux.maskedPaths` and `linux.readonlyPaths`, applied from inside the new root. Paths that the image or the
//! kernel does not have are nothing to protect.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, statat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::{attach, filesystem_of, read_only_copy};
use super::options::attr;
use crate::error::{Attempt as _, Result};

/// Makes paths read-only by mounting them on themselves.
pub(super) fn read_only(paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(point) = existing(path)? else { continue };
        let copy = read_only_copy(&point)?;
        attach(&copy, &point).attempt(|| format!("make {path} read-only"))?;
    }
    Ok(())
}

/// Hides paths: files behind `/dev/null`, directories behind an empty read-only directory that all of them share.
pub(super) fn mask(paths: &[String]) -> Result<()> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(point) = existing(path)? else { continue };
        let stat = statat(&point, "", AtFlags::EMPTY_PATH).attempt(|| format!("examine {path}"))?;
        let attempt = || format!("mask {path}");
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            let null = open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).attempt(|| "open /dev/null")?;
            attach(&clone_of(&null)?, &point).attempt(attempt)?;
        } else if let Some(empty) = &empty {
            attach(&clone_of(empty)?, &point).attempt(attempt)?;
        } else {
            // Before Linux 6.15 only what is attached can be cloned, so the first one is attached itself.
            let first = empty.insert(filesystem_of("tmpfs", "tmpfs", &["size=0k", "nr_inodes=2"], attr::RDONLY)?);
            attach(&*first, &point).attempt(attempt)?;
        }
    }
    Ok(())
}

fn existing(path: &str) -> Result<Option<OwnedFd>> {
    match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno).attempt(|| format!("open {path}")),
    }
}

fn clone_of(fd: &OwnedFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(fd, "", flags).attempt(|| "copy a mount")
}
