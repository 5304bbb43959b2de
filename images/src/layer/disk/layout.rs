//! Where everything lies: the superblock, then all inodes, each followed by what its layout keeps beside it, then all blocks.

use std::ops::Range;

use rustix::fs::FileType;

use super::format::{BLOCK, HOLE, INODE, SLOT, SUPERBLOCK, SUPERBLOCK_SIZE};
use super::scan::{Node, kind};
use crate::layer::LayerError;

/// Most chunks of one file: its list then takes 256 KiB.
const MAX_CHUNKS: u64 = 1 << 16;

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

/// Gives every node its place. Returns the size of the disk, bytes.
pub fn place(nodes: &mut [Node]) -> Result<u64, LayerError> {
    let mut end = SUPERBLOCK + SUPERBLOCK_SIZE;
    for node in nodes.iter_mut() {
        node.data = choose(node);
        let behind = beside(node);
        let whole = INODE + node.xattrs.len() as u64 + behind;
        end = end.next_multiple_of(SLOT);
        let room = BLOCK - end % BLOCK;
        // What is inline may not cross a block's end; an inode is easier to read where it does not.
        let must_fit = if whole <= BLOCK { whole } else { INODE };
        if room < must_fit {
            end += room;
        }
        node.place = end;
        end += whole;
    }
    let mut next = end.div_ceil(BLOCK);
    for node in nodes.iter_mut() {
        match &mut node.data {
            Data::None => {}
            Data::Plain { block } => *block = take(&mut next, node.size.div_ceil(BLOCK))?,
            Data::Inline { block } => *block = take(&mut next, node.size / BLOCK)?,
            Data::Chunks { bits, blocks } => {
                let chunk = 1 << *bits;
                for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| **block != HOLE) {
                    let left = node.size.div_ceil(BLOCK) - index as u64 * chunk;
                    *block = take(&mut next, left.min(chunk))?;
                }
            }
        }
    }
    Ok(next * BLOCK)
}

/// Bytes beside the inode, after its extended attributes.
pub fn beside(node: &Node) -> u64 {
    match &node.data {
        Data::None | Data::Plain { .. } => 0,
        Data::Inline { .. } => node.size % BLOCK,
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

fn choose(node: &Node) -> Data {
    if !matches!(kind(node.mode), FileType::RegularFile | FileType::Directory | FileType::Symlink) || node.size == 0 {
        return Data::None;
    }
    if let Some(chunks) = node.extents.as_ref().and_then(|extents| chunks(extents, node.size)) {
        return chunks;
    }
    let tail = node.size % BLOCK;
    if tail > 0 && INODE + node.xattrs.len() as u64 + tail <= BLOCK {
        Data::Inline { block: 0 }
    } else {
        Data::Plain { block: 0 }
    }
}

/// The chunks of a file with holes; `None` if no chunk is one.
fn chunks(extents: &[Range<u64>], size: u64) -> Option<Data> {
    let blocks = size.div_ceil(BLOCK);
    let bits = blocks.div_ceil(MAX_CHUNKS).next_power_of_two().trailing_zeros() as u8;
    let chunk = BLOCK << bits;
    let mut chunks = vec![HOLE; size.div_ceil(chunk) as usize];
    for extent in extents.iter().filter(|extent| !extent.is_empty()) {
        chunks[(extent.start / chunk) as usize..=((extent.end - 1) / chunk) as usize].fill(0);
    }
    chunks.contains(&HOLE).then_some(Data::Chunks { bits, blocks: chunks })
}
