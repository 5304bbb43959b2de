//! Writes the disk: superblock, inodes, blocks.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{Node, kind};
use super::super::writer::Writer;
use super::format::{HOLE, SLOT, SUPERBLOCK, directory, inode, listing, superblock};
use super::layout::{Data, Inode, beside, place};
use crate::layer::{LayerError, Limits};

/// Writes `nodes`, which were found in `tree`. Returns the size of the disk, bytes.
pub fn write(tree: &OwnedFd, disk: File, nodes: &[Node], limits: &Limits) -> Result<u64, LayerError> {
    let (inodes, size) = place(nodes)?;
    let needed = nodes.iter().map(|node| node.size.min(node.allocated).next_multiple_of(SLOT) + SLOT * 2).sum();
    let mut packer = Packer { inodes: &inodes, disk: Writer::new(tree, disk, size, needed, limits)? };
    let has_chunks = inodes.iter().any(|inode| matches!(inode.data, Data::Chunks { .. }));
    let blocks = u32::try_from(size / BLOCK).map_err(|_| LayerError::TooLarge("16 TiB".to_owned()))?;
    let superblock = superblock(inodes[0].place / SLOT, inodes.len() as u64, blocks, has_chunks);
    packer.disk.put(SUPERBLOCK, &superblock)?;
    for (index, inode) in inodes.iter().enumerate() {
        packer.inode(inode, index as u32)?;
    }
    for (index, inode) in inodes.iter().enumerate() {
        packer.blocks(inode, index as u32)?;
    }
    packer.disk.finish()?;
    Ok(size)
}

struct Packer<'a> {
    inodes: &'a [Inode<'a>],
    disk: Writer<'a>,
}

impl Packer<'_> {
    fn inode(&mut self, place: &Inode<'_>, index: u32) -> Result<(), LayerError> {
        let mut bytes = inode(place, index + 1);
        match &place.data {
            Data::Inline { .. } => match self.memory(place.node, index) {
                Some(content) => bytes.extend(&content[content.len() - beside(place) as usize..]),
                None => bytes.extend(self.tail(place)?),
            },
            Data::Chunks { blocks, .. } => bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes())),
            Data::None | Data::Plain { .. } => {}
        }
        self.disk.put(place.place, &bytes)
    }

    fn blocks(&mut self, inode: &Inode<'_>, index: u32) -> Result<(), LayerError> {
        let (block, length) = match &inode.data {
            Data::None => return Ok(()),
            Data::Plain { block } => (*block, inode.size),
            Data::Inline { block } => (*block, inode.size - beside(inode)),
            Data::Chunks { bits, blocks } => return self.chunks(inode.node, BLOCK << bits, blocks),
        };
        if length == 0 {
            return Ok(());
        }
        let place = u64::from(block) * BLOCK;
        if let Some(content) = self.memory(inode.node, index) {
            return self.disk.put(place, &content[..length as usize]);
        }
        let mut file = self.disk.file(inode.node)?;
        self.disk.copy(&mut file, inode.node, 0, length, place)
    }

    /// The content of what is no regular file.
    fn memory(&self, node: &Node, index: u32) -> Option<Vec<u8>> {
        match kind(node.mode) {
            FileType::Directory => Some(directory(&listing(self.inodes, index))),
            FileType::Symlink => Some(node.target.clone()),
            _ => None,
        }
    }

    fn tail(&self, inode: &Inode<'_>) -> Result<Vec<u8>, LayerError> {
        let mut tail = vec![0; beside(inode) as usize];
        let mut file = self.disk.file(inode.node)?;
        file.seek(SeekFrom::Start(inode.size - tail.len() as u64))
            .and_then(|_| file.read_exact(&mut tail))
            .map_err(LayerError::io("read", &inode.node.path))?;
        Ok(tail)
    }

    fn chunks(&mut self, node: &Node, chunk: u64, blocks: &[u32]) -> Result<(), LayerError> {
        let mut file = self.disk.file(node)?;
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| **block != HOLE) {
            let from = index as u64 * chunk;
            self.disk.copy(&mut file, node, from, chunk.min(node.size - from), u64::from(*block) * BLOCK)?;
        }
        Ok(())
    }
}
