//! Where everything lies: the superblock, the groups' descriptors, bitmaps and inodes, all at the front, then all blocks.

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{Node, kind};
use super::extents::{self, Extent, MAX_LENGTH};
use super::format::{DESCRIPTOR, INODE, directory_size};
use super::xattrs;
use crate::layer::LayerError;

/// Blocks, and at most inodes, of a group: what a bitmap of one block counts.
pub const GROUP: u64 = BLOCK * 8;
/// The number of the root directory.
const ROOT: u32 = 2;
/// The number of the last reserved inode.
pub const RESERVED: u32 = 10;
/// Longest target of a link that is kept in its inode, bytes.
const SHORT_TARGET: u64 = 59;
/// Most names of a file.
const MAX_LINKS: u32 = 65_000;

/// How the disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Number of groups.
    pub groups: u64,
    /// Inodes in each group.
    pub inodes_per_group: u64,
    /// The first block of all that is no part of a group's own.
    pub first: u64,
    /// All blocks from here on are free.
    pub used: u64,
    /// Number of blocks.
    pub blocks: u64,
}

impl Geometry {
    /// The smallest one with room for `inodes`, counting the reserved, and `data` blocks.
    fn new(inodes: u64, data: u64) -> Result<Self, LayerError> {
        const IN_BLOCK: u64 = BLOCK / INODE;

        let mut groups = inodes.div_ceil(GROUP);
        loop {
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(IN_BLOCK);
            let first = 1 + (groups * DESCRIPTOR).div_ceil(BLOCK) + groups * 2 + groups * (inodes_per_group / IN_BLOCK);
            let used = first + data;
            if used.div_ceil(GROUP) > groups {
                groups = used.div_ceil(GROUP);
                continue;
            }
            if used > u64::from(u32::MAX) {
                return Err(LayerError::TooLarge("the 16 TiB that a guest's disk may have".to_owned()));
            }
            // Inodes alone may ask for a group.
            let blocks = if used > (groups - 1) * GROUP { used } else { groups * GROUP };
            return Ok(Self { groups, inodes_per_group, first, used, blocks });
        }
    }

    /// The block of a group's bitmap of blocks.
    pub fn block_bitmap(&self, group: u64) -> u64 {
        1 + (self.groups * DESCRIPTOR).div_ceil(BLOCK) + group
    }

    /// The block of a group's bitmap of inodes.
    pub fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(self.groups) + group
    }

    /// The first block of a group's inodes.
    pub fn inode_table(&self, group: u64) -> u64 {
        self.inode_bitmap(self.groups) + group * (self.inodes_per_group * INODE / BLOCK)
    }
}

/// A node on the disk.
#[derive(Debug)]
pub struct Inode<'a> {
    pub node: &'a Node,
    /// Bytes of content, of directories too.
    pub size: u64,
    /// Where the content lies; nothing of what is kept in the inode.
    pub extents: Vec<Extent>,
    /// The first block of the tree of extents.
    pub tree: u32,
    /// The extended attributes, and their block.
    pub xattrs: Option<(u32, Vec<u8>)>,
    /// Blocks that belong to it.
    pub blocks: u64,
}

/// Gives every node its place.
pub fn place(nodes: &[Node]) -> Result<(Vec<Inode<'_>>, Geometry), LayerError> {
    let mut inodes = nodes.iter().map(inode).collect::<Result<Vec<_>, _>>()?;
    let data = place_blocks(&mut inodes, 0)?;
    let geometry = Geometry::new(u64::from(number(nodes.len() as u32 - 1).max(RESERVED)), data)?;
    place_blocks(&mut inodes, geometry.first)?;
    Ok((inodes, geometry))
}

/// The inode's number of the node at this place in the list, whose first is the root.
pub fn number(index: u32) -> u32 {
    if index == 0 { ROOT } else { RESERVED + index }
}

/// Whether a node has content in blocks.
pub fn has_blocks(node: &Node) -> bool {
    match kind(node.mode) {
        FileType::RegularFile | FileType::Directory => true,
        FileType::Symlink => node.size > SHORT_TARGET,
        _ => false,
    }
}

fn inode(node: &Node) -> Result<Inode<'_>, LayerError> {
    let too_much = |what: &str| LayerError::entry(&node.path, format!("{what} for a guest's disk of the format ext4"));
    let size = match kind(node.mode) {
        FileType::Directory => directory_size(node.entries.iter().map(|(name, _)| name.len())),
        _ => node.size,
    };
    if size.div_ceil(BLOCK) > u64::from(u32::MAX) {
        return Err(too_much("is too large"));
    }
    if kind(node.mode) != FileType::Directory && node.links > MAX_LINKS {
        return Err(too_much("has too many names"));
    }
    let xattrs = if node.xattrs.is_empty() {
        None
    } else {
        let block = xattrs::block(&node.xattrs).ok_or_else(|| too_much("has extended attributes too large"))?;
        Some((0, block))
    };
    Ok(Inode { node, size, extents: Vec::new(), tree: 0, xattrs, blocks: 0 })
}

/// Gives all content its blocks, from the block `first` on. Returns the block after the last.
fn place_blocks(inodes: &mut [Inode<'_>], first: u64) -> Result<u64, LayerError> {
    let mut next = first;
    for inode in inodes {
        let begin = next;
        inode.extents.clear();
        if has_blocks(inode.node) {
            for (logical, count) in runs(inode) {
                extend(&mut inode.extents, logical, count, &mut next)?;
            }
        }
        inode.tree = block(next)?;
        next += extents::blocks(inode.extents.len());
        if let Some((place, _)) = &mut inode.xattrs {
            *place = block(next)?;
            next += 1;
        }
        inode.blocks = next - begin;
    }
    Ok(next)
}

/// The runs of blocks that hold data: their first number in the file, and how many.
fn runs(inode: &Inode<'_>) -> Vec<(u64, u64)> {
    let blocks = inode.size.div_ceil(BLOCK);
    let Some(chunks) = inode.node.chunks() else { return vec![(0, blocks)] };
    let mut runs = Vec::new();
    let mut at = 0;
    for part in chunks.has_data.chunk_by(|one, next| one == next) {
        let end = at + part.len() as u64;
        if part[0] {
            let first = at << chunks.bits;
            runs.push((first, (end << chunks.bits).min(blocks) - first));
        }
        at = end;
    }
    runs
}

/// Adds a run of blocks as extents.
fn extend(extents: &mut Vec<Extent>, logical: u64, count: u64, next: &mut u64) -> Result<(), LayerError> {
    let mut done = 0;
    while done < count {
        let length = (count - done).min(MAX_LENGTH);
        // The file's size was looked at: a number in it fits.
        let logical = (logical + done) as u32;
        extents.push(Extent { logical, physical: block(*next)?, length: length as u16 });
        *next += length;
        done += length;
    }
    Ok(())
}

fn block(number: u64) -> Result<u32, LayerError> {
    u32::try_from(number).map_err(|_| LayerError::TooLarge("the 16 TiB that a guest's disk may have".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_room_for_all_blocks_and_inodes() {
        for inodes in [10, 11, 16, 32_768, 32_769, 1_000_000] {
            for data in [0, 1, 30_000, 32_000, 32_768, 65_536, 5_000_000] {
                let found = Geometry::new(inodes, data).unwrap();
                let Geometry { groups, inodes_per_group, first, used, blocks } = found;
                assert!(groups * inodes_per_group >= inodes && inodes_per_group <= GROUP, "{found:?}");
                assert!(used == first + data && used <= blocks, "{found:?}");
                assert!(blocks <= groups * GROUP && blocks > (groups - 1) * GROUP, "{found:?}");
                assert_eq!(found.inode_table(groups), first, "{found:?}");
            }
        }
        Geometry::new(10, 1 << 32).unwrap_err();
    }
}
