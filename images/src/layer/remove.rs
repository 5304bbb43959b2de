//! Removal of a directory tree, whatever its depth, with two open descriptors and no recursion: subdirectories are
//! first moved up to the top. Names come from strangers, so nothing is ever followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, statat, unlinkat};
use rustix::io::{Errno, Result};

/// Removes `name` under `parent`, a directory or anything else. Nothing there is no error.
pub fn remove_all(parent: impl AsFd, name: &[u8]) -> Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    let top = open(&parent, name)?;
    let mut moved = 0_u64;
    loop {
        let children = names(&top)?;
        if children.is_empty() {
            break;
        }
        for child in children {
            if is_directory(&top, &child)? {
                flatten(&top, &child, &mut moved)?;
            } else {
                unlinkat(&top, child, AtFlags::empty())?;
            }
        }
    }
    unlinkat(&parent, name, AtFlags::REMOVEDIR)
}

/// Empties and removes the directory `name`; its own subdirectories end up in `top`.
fn flatten(top: &OwnedFd, name: &[u8], moved: &mut u64) -> Result<()> {
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    let directory = open(top, name)?;
    for child in names(&directory)? {
        if is_directory(&directory, &child)? {
            loop {
                *moved += 1;
                let target = format!(".moved-{moved}");
                match renameat_with(&directory, &child, top, target, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => {}
                    other => break other?,
                }
            }
        } else {
            unlinkat(&directory, child, AtFlags::empty())?;
        }
    }
    unlinkat(top, name, AtFlags::REMOVEDIR)
}

fn open(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> Result<bool> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_trees_and_links_out() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("outside"), "kept").unwrap();
        let top = temp.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(temp.path(), top.join("link")).unwrap();
        let mut at = open(rustix::fs::CWD, top.as_os_str().as_encoded_bytes()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("..", &at, "up").unwrap();
            at = open(&at, b"directory").unwrap();
        }
        let parent = open(rustix::fs::CWD, temp.path().as_os_str().as_encoded_bytes()).unwrap();
        remove_all(&parent, b"top").unwrap();
        remove_all(&parent, b"top").unwrap();
        assert!(!top.exists());
        assert!(temp.path().join("outside").exists());
    }
}
