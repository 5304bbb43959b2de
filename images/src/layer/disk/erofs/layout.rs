//! Where everything lies: the superblock, then all inodes, each followed by what its layout keeps beside it, then all blocks.

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{Node, kind};
use super::format::{self, HOLE, INODE, SLOT, SUPERBLOCK, SUPERBLOCK_SIZE};
use crate::layer::LayerError;

/// A node on the disk.
#[derive(Debug)]
pub struct Inode<'a> {
    pub node: &'a Node,
    /// As [`format::xattrs`] makes them.
    pub xattrs: Vec<u8>,
    /// Bytes of content, of directories too.
    pub size: u64,
    /// Where the inode lies on the disk, bytes.
    pub place: u64,
    /// Where the content lies.
    pub data: Data,
}

/// Where a node's content lies.
#[derive(Debug, PartialEq, Eq)]
pub enum Data {
    /// There is none.
    None,
    /// From this block on.
    Plain { block: u32 },
    /// From this block on, and what fills no block after the inode.
    Inline { block: u32 },
    /// In chunks of 2^`bits` blocks; the block each begins at, or [`HOLE`].
    Chunks { bits: u8, blocks: Vec<u32> },
}

/// Gives every node its place. Also returns the size of the disk, bytes.
pub fn place(nodes: &[Node]) -> Result<(Vec<Inode<'_>>, u64), LayerError> {
    let mut inodes = nodes.iter().map(inode).collect::<Result<Vec<_>, _>>()?;
    let mut end = SUPERBLOCK + SUPERBLOCK_SIZE;
    for inode in &mut inodes {
        inode.data = choose(inode);
        let whole = INODE + inode.xattrs.len() as u64 + beside(inode);
        end = end.next_multiple_of(SLOT);
        let room = BLOCK - end % BLOCK;
        // What is inline may not cross a block's end; an inode is easier to read where it does not.
        let must_fit = if whole <= BLOCK { whole } else { INODE };
        if room < must_fit {
            end += room;
        }
        inode.place = end;
        end += whole;
    }
    let mut next = end.div_ceil(BLOCK);
    for Inode { size, data, .. } in &mut inodes {
        match data {
            Data::None => {}
            Data::Plain { block } => *block = take(&mut next, size.div_ceil(BLOCK))?,
            Data::Inline { block } => *block = take(&mut next, *size / BLOCK)?,
            Data::Chunks { bits, blocks } => {
                let chunk = 1 << *bits;
                for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| **block != HOLE) {
                    let left = size.div_ceil(BLOCK) - index as u64 * chunk;
                    *block = take(&mut next, left.min(chunk))?;
                }
            }
        }
    }
    Ok((inodes, next * BLOCK))
}

fn inode(node: &Node) -> Result<Inode<'_>, LayerError> {
    let xattrs = format::xattrs(&node.xattrs)
        .ok_or_else(|| LayerError::entry(&node.path, "has extended attributes too large for a guest's disk"))?;
    let size = match kind(node.mode) {
        FileType::Directory => {
            let mut names: Vec<&[u8]> =
                node.entries.iter().map(|(name, _)| &**name).chain([&b"."[..], b".."]).collect();
            names.sort_unstable();
            format::directory_size(names)
        }
        _ => node.size,
    };
    Ok(Inode { node, xattrs, size, place: 0, data: Data::None })
}

/// Bytes beside the inode, after its extended attributes.
pub fn beside(inode: &Inode<'_>) -> u64 {
    match &inode.data {
        Data::None | Data::Plain { .. } => 0,
        Data::Inline { .. } => inode.size % BLOCK,
        Data::Chunks { blocks, .. } => blocks.len() as u64 * 4,
    }
}

fn take(next: &mut u64, count: u64) -> Result<u32, LayerError> {
    let first = u32::try_from(*next);
    *next += count;
    // The last address means a hole.
    match first {
        Ok(first) if *next < u64::from(HOLE) => Ok(first),
        _ => Err(LayerError::TooLarge("the 16 TiB that a guest's disk may have".to_owned())),
    }
}

fn choose(inode: &Inode<'_>) -> Data {
    let kind = kind(inode.node.mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) || inode.size == 0 {
        return Data::None;
    }
    if let Some(chunks) = inode.node.chunks() {
        let blocks = chunks.has_data.iter().map(|has_data| if *has_data { 0 } else { HOLE }).collect();
        return Data::Chunks { bits: chunks.bits, blocks };
    }
    let tail = inode.size % BLOCK;
    if tail > 0 && INODE + inode.xattrs.len() as u64 + tail <= BLOCK {
        Data::Inline { block: 0 }
    } else {
        Data::Plain { block: 0 }
    }
}
