//! The file that becomes the disk, written from front to back.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fstatvfs};

use super::scan::{Node, open};
use crate::layer::{LayerError, Limits};

/// What error messages call the file being written.
const DISK: &[u8] = b"the guest's disk";

/// The disk being written. What is skipped stays a hole.
pub struct Writer<'a> {
    tree: &'a OwnedFd,
    disk: BufWriter<File>,
    /// Bytes from the front.
    at: u64,
}

impl<'a> Writer<'a> {
    /// Makes the disk `size` bytes long, of which about `needed` will be written.
    pub fn new(tree: &'a OwnedFd, disk: File, size: u64, needed: u64, limits: &Limits) -> Result<Self, LayerError> {
        let space = fstatvfs(&disk).map_err(LayerError::io("examine the file system of", DISK))?;
        if space.f_bavail.saturating_mul(space.f_frsize) < needed.saturating_add(limits.min_free) {
            return Err(LayerError::DiskFull);
        }
        disk.set_len(size).map_err(LayerError::io("extend", DISK))?;
        Ok(Self { tree, disk: BufWriter::with_capacity(1 << 17, disk), at: 0 })
    }

    fn seek(&mut self, place: u64) -> Result<(), LayerError> {
        if place != self.at {
            self.disk.seek_relative(place as i64 - self.at as i64).map_err(LayerError::io("seek in", DISK))?;
            self.at = place;
        }
        Ok(())
    }

    /// Writes `bytes` at `place`.
    pub fn put(&mut self, place: u64, bytes: &[u8]) -> Result<(), LayerError> {
        self.seek(place)?;
        self.disk.write_all(bytes).map_err(LayerError::io("write", DISK))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// The content of a regular file.
    pub fn file(&self, node: &Node) -> Result<File, LayerError> {
        open(self.tree, &node.path, OFlags::RDONLY).map(File::from)
    }

    /// Copies `length` bytes of `file`, which is `node`'s, from `from` on to `place`.
    pub fn copy(&mut self, file: &mut File, node: &Node, from: u64, length: u64, place: u64) -> Result<(), LayerError> {
        self.seek(place)?;
        file.seek(SeekFrom::Start(from)).map_err(LayerError::io("seek in", &node.path))?;
        let source = &mut io::Read::take(file, length);
        let copied = io::copy(source, &mut self.disk).map_err(LayerError::io("copy", &node.path))?;
        self.at += copied;
        if copied < length {
            return Err(LayerError::entry(&node.path, "became shorter while it was read"));
        }
        Ok(())
    }

    /// Ends the writing.
    pub fn finish(mut self) -> Result<(), LayerError> {
        self.disk.flush().map_err(LayerError::io("write", DISK))
    }
}
