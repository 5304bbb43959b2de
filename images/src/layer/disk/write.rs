//! Writes the disk from front to back.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fstatvfs};

use super::format::{BLOCK, HOLE, SLOT, SUPERBLOCK, directory, inode, listing, superblock};
use super::layout::{Data, beside};
use super::scan::{Node, kind, open};
use crate::layer::{LayerError, Limits};

/// What error messages call the file being written.
const DISK: &[u8] = b"the guest's disk";

/// Whether there is room for what is about to be written.
pub fn check_space(disk: &File, nodes: &[Node], limits: &Limits) -> Result<(), LayerError> {
    let space = fstatvfs(disk).map_err(LayerError::io("examine the file system of", DISK))?;
    let needed: u64 = nodes.iter().map(|node| node.size.min(node.allocated).next_multiple_of(SLOT) + SLOT * 2).sum();
    if space.f_bavail.saturating_mul(space.f_frsize) < needed.saturating_add(limits.min_free) {
        return Err(LayerError::DiskFull);
    }
    Ok(())
}

/// Writes all of it; `size` is the disk's size in bytes.
pub fn write(tree: &OwnedFd, disk: File, nodes: &[Node], size: u64) -> Result<(), LayerError> {
    disk.set_len(size).map_err(LayerError::io("extend", DISK))?;
    let mut writer = Writer { tree, nodes, disk: BufWriter::with_capacity(1 << 17, disk), at: 0 };
    let has_chunks = nodes.iter().any(|node| matches!(node.data, Data::Chunks { .. }));
    let blocks = u32::try_from(size / BLOCK).map_err(|_| LayerError::TooLarge("16 TiB".to_owned()))?;
    writer.put(SUPERBLOCK, &superblock(nodes[0].place / SLOT, nodes.len() as u64, blocks, has_chunks))?;
    for (index, node) in nodes.iter().enumerate() {
        writer.inode(node, index as u32)?;
    }
    for (index, node) in nodes.iter().enumerate() {
        writer.blocks(node, index as u32)?;
    }
    writer.disk.flush().map_err(LayerError::io("write", DISK))
}

struct Writer<'a> {
    tree: &'a OwnedFd,
    nodes: &'a [Node],
    disk: BufWriter<File>,
    /// Bytes from the front.
    at: u64,
}

impl Writer<'_> {
    fn seek(&mut self, place: u64) -> Result<(), LayerError> {
        if place != self.at {
            self.disk.seek_relative(place as i64 - self.at as i64).map_err(LayerError::io("seek in", DISK))?;
            self.at = place;
        }
        Ok(())
    }

    fn put(&mut self, place: u64, bytes: &[u8]) -> Result<(), LayerError> {
        self.seek(place)?;
        self.disk.write_all(bytes).map_err(LayerError::io("write", DISK))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn inode(&mut self, node: &Node, index: u32) -> Result<(), LayerError> {
        let mut bytes = inode(node, index + 1);
        match &node.data {
            Data::Inline { .. } => match self.memory(node, index) {
                Some(content) => bytes.extend(&content[content.len() - beside(node) as usize..]),
                None => bytes.extend(self.tail(node)?),
            },
            Data::Chunks { blocks, .. } => bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes())),
            Data::None | Data::Plain { .. } => {}
        }
        self.put(node.place, &bytes)
    }

    fn blocks(&mut self, node: &Node, index: u32) -> Result<(), LayerError> {
        let (block, length) = match &node.data {
            Data::None => return Ok(()),
            Data::Plain { block } => (*block, node.size),
            Data::Inline { block } => (*block, node.size - beside(node)),
            Data::Chunks { bits, blocks } => return self.chunks(node, BLOCK << bits, blocks),
        };
        if length == 0 {
            return Ok(());
        }
        let place = u64::from(block) * BLOCK;
        if let Some(content) = self.memory(node, index) {
            return self.put(place, &content[..length as usize]);
        }
        let mut file = self.file(node)?;
        self.copy(&mut file, node, place, length)
    }

    /// The content of what is no regular file.
    fn memory(&self, node: &Node, index: u32) -> Option<Vec<u8>> {
        match kind(node.mode) {
            FileType::Directory => Some(directory(&listing(self.nodes, node, index))),
            FileType::Symlink => Some(node.target.clone()),
            _ => None,
        }
    }

    fn file(&self, node: &Node) -> Result<File, LayerError> {
        open(self.tree, &node.path, OFlags::RDONLY).map(File::from)
    }

    fn tail(&self, node: &Node) -> Result<Vec<u8>, LayerError> {
        let mut tail = vec![0; beside(node) as usize];
        let mut file = self.file(node)?;
        file.seek(SeekFrom::Start(node.size - tail.len() as u64))
            .and_then(|_| file.read_exact(&mut tail))
            .map_err(LayerError::io("read", &node.path))?;
        Ok(tail)
    }

    fn chunks(&mut self, node: &Node, chunk: u64, blocks: &[u32]) -> Result<(), LayerError> {
        let mut file = self.file(node)?;
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| **block != HOLE) {
            let from = index as u64 * chunk;
            file.seek(SeekFrom::Start(from)).map_err(LayerError::io("seek in", &node.path))?;
            self.copy(&mut file, node, u64::from(*block) * BLOCK, chunk.min(node.size - from))?;
        }
        Ok(())
    }

    fn copy(&mut self, file: &mut File, node: &Node, place: u64, length: u64) -> Result<(), LayerError> {
        self.seek(place)?;
        let copied = io::copy(&mut file.take(length), &mut self.disk).map_err(LayerError::io("copy", &node.path))?;
        self.at += copied;
        if copied < length {
            return Err(LayerError::entry(&node.path, "became shorter while it was read"));
        }
        Ok(())
    }
}
