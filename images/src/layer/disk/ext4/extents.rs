//! Where a file's blocks are: extents, in a tree whose root is in the inode.

use super::super::BLOCK;

/// Blocks that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Their first number in the file.
    pub logical: u32,
    /// Their first number on the disk.
    pub physical: u32,
    pub length: u16,
}

/// Bytes of the root in an inode.
pub const ROOT: usize = 60;
/// Most blocks of an extent; a larger length would say that nothing was written there yet.
pub const MAX_LENGTH: u64 = 1 << 15;
/// Bytes of the header, and of an entry.
const RECORD: usize = 12;
/// Entries in the root.
const IN_ROOT: usize = (ROOT - RECORD) / RECORD;
/// Entries in a block.
const IN_BLOCK: usize = (BLOCK as usize - RECORD) / RECORD;

/// Blocks that the tree of so many extents takes beside the inode.
pub fn blocks(extents: usize) -> u64 {
    let (mut entries, mut blocks) = (extents, 0);
    while entries > IN_ROOT {
        entries = entries.div_ceil(IN_BLOCK);
        blocks += entries;
    }
    blocks as u64
}

/// The tree: its root, and its blocks, which lie on the disk from `first` on.
pub fn tree(extents: &[Extent], first: u32) -> ([u8; ROOT], Vec<u8>) {
    // Of each entry the block it begins with in the file, and its bytes.
    let mut entries: Vec<(u32, [u8; RECORD])> = extents.iter().map(|extent| (extent.logical, leaf(extent))).collect();
    let (mut depth, mut number, mut blocks) = (0, first, Vec::new());
    while entries.len() > IN_ROOT {
        let mut above = Vec::with_capacity(entries.len().div_ceil(IN_BLOCK));
        for part in entries.chunks(IN_BLOCK) {
            blocks.extend(node(part, IN_BLOCK, depth));
            blocks.resize(blocks.len().next_multiple_of(BLOCK as usize), 0);
            above.push((part[0].0, index(part[0].0, number)));
            number += 1;
        }
        entries = above;
        depth += 1;
    }
    let mut root = [0; ROOT];
    let bytes = node(&entries, IN_ROOT, depth);
    root[..bytes.len()].copy_from_slice(&bytes);
    (root, blocks)
}

fn node(entries: &[(u32, [u8; RECORD])], capacity: usize, depth: u16) -> Vec<u8> {
    const MAGIC: u16 = 0xf30a;

    let mut bytes = Vec::with_capacity(RECORD * (entries.len() + 1));
    for value in [MAGIC, entries.len() as u16, capacity as u16, depth] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(entries.iter().flat_map(|(_, entry)| entry));
    bytes
}

/// An extent in a node of depth 0. The upper half of the address comes before the lower one and is zero.
fn leaf(extent: &Extent) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..4].copy_from_slice(&extent.logical.to_le_bytes());
    bytes[4..6].copy_from_slice(&extent.length.to_le_bytes());
    bytes[8..].copy_from_slice(&extent.physical.to_le_bytes());
    bytes
}

/// The entry for a node in the block `physical`, which begins with the block `logical` of the file.
fn index(logical: u32, physical: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..4].copy_from_slice(&logical.to_le_bytes());
    bytes[4..8].copy_from_slice(&physical.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_takes_the_blocks_that_were_counted() {
        for count in [0, 1, 4, 5, 340, 341, 1360, 1361, 1362, 200_000] {
            let extents: Vec<_> =
                (0..count).map(|number| Extent { logical: number * 2, physical: number, length: 1 }).collect();
            let (root, bytes) = tree(&extents, 1_000_000);
            assert_eq!(bytes.len() as u64, blocks(extents.len()) * BLOCK, "{count} extents");
            let depth = u16::from_le_bytes([root[6], root[7]]);
            assert_eq!(depth, if count > 1360 { 2 } else { u16::from(count > 4) }, "{count} extents");
        }
    }
}
