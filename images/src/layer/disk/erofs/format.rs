//! The bytes of erofs: superblock, inodes, directories and extended attributes.

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{file_type, kind};
use super::layout::{Data, Inode};

/// Where the superblock lies.
pub const SUPERBLOCK: u64 = 1024;
/// Bytes of the superblock.
pub const SUPERBLOCK_SIZE: u64 = 128;
/// Inodes begin at multiples of this; an inode's number is its place divided by this.
pub const SLOT: u64 = 32;
/// Bytes of an extended inode, the form with times, and ids of 32 bits.
pub const INODE: u64 = 64;
/// The address of a chunk that is a hole.
pub const HOLE: u32 = u32::MAX;
/// Bytes of a directory entry without its name.
const ENTRY: usize = 12;
/// Bytes before the extended attributes of an inode.
const XATTR_HEADER: usize = 12;

/// How an inode says where its data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In consecutive blocks.
    Plain = 0,
    /// As `Plain`, but what fills no whole block follows the inode.
    Inline = 2,
    /// In chunks that are listed after the inode; some are holes.
    Chunks = 4,
}

/// The superblock of a disk with `inodes` inodes in `blocks` blocks.
pub fn superblock(root: u64, inodes: u64, blocks: u32, has_chunks: bool) -> Vec<u8> {
    /// Times of inodes are modification times.
    const COMPAT_MTIME: u32 = 1 << 1;
    /// Some inodes use [`Layout::Chunks`].
    const INCOMPAT_CHUNKED_FILE: u32 = 1 << 2;

    let mut bytes = vec![0; SUPERBLOCK_SIZE as usize];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &0xe0f5_e1e2_u32.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[BLOCK.trailing_zeros() as u8]);
    put(14, &(root as u16).to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(64, b"berth");
    put(80, &(if has_chunks { INCOMPAT_CHUNKED_FILE } else { 0 }).to_le_bytes());
    bytes
}

/// The inode of a node that is the `number`th of the disk.
pub fn inode(inode: &Inode<'_>, number: u32) -> Vec<u8> {
    const EXTENDED: u16 = 1;
    let node = inode.node;
    let (layout, place) = match &inode.data {
        Data::None => (Layout::Plain, device(node.device)),
        Data::Plain { block } => (Layout::Plain, *block),
        Data::Inline { block } => (Layout::Inline, *block),
        // The size of a chunk, as a power of two of blocks.
        Data::Chunks { bits, .. } => (Layout::Chunks, u32::from(*bits)),
    };
    let mut bytes = Vec::with_capacity(INODE as usize + inode.xattrs.len());
    bytes.extend((EXTENDED | (layout as u16) << 1).to_le_bytes());
    bytes.extend(xattr_count(&inode.xattrs).to_le_bytes());
    bytes.extend((node.mode as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(inode.size.to_le_bytes());
    bytes.extend(place.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(node.uid.to_le_bytes());
    bytes.extend(node.gid.to_le_bytes());
    bytes.extend(node.mtime.0.to_le_bytes());
    bytes.extend(node.mtime.1.to_le_bytes());
    bytes.extend(node.links.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(&inode.xattrs);
    bytes
}

/// The number of a device as an inode holds it: the kernel's 12 bits of major and 20 of minor number.
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Extended attributes as they follow an inode; nothing if there are none. `None`: they are too large.
pub fn xattrs(all: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    /// Beginnings of names that are written as a number. Longer ones come first.
    const PREFIXES: [(&[u8], u8); 4] =
        [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"security.", 6), (b"user.", 1)];

    if all.is_empty() {
        return Some(Vec::new());
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in all {
        let (rest, prefix) =
            PREFIXES.iter().find_map(|(prefix, number)| Some((name.strip_prefix(*prefix)?, *number)))?;
        bytes.extend([u8::try_from(rest.len()).ok()?, prefix]);
        bytes.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    u16::try_from((bytes.len() - XATTR_HEADER) / 4 + 1).ok()?;
    Some(bytes)
}

/// The size of the extended attributes as an inode holds it.
fn xattr_count(xattrs: &[u8]) -> u16 {
    if xattrs.is_empty() { 0 } else { ((xattrs.len() - XATTR_HEADER) / 4 + 1) as u16 }
}

/// Bytes of a directory with these names, which are in order.
pub fn directory_size<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for name in names {
        let need = (ENTRY + name.len()) as u64;
        if used + need > BLOCK {
            full += 1;
            used = 0;
        }
        used += need;
    }
    full * BLOCK + used
}

/// A directory's content: blocks, each with entries and then their names. The names are in order.
pub fn directory(entries: &[(&[u8], u64, FileType)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = |(name, ..): &&(&[u8], u64, FileType)| {
            used += ENTRY + name.len();
            used <= BLOCK as usize
        };
        let (block, behind) = rest.split_at(rest.iter().take_while(fits).count());
        rest = behind;
        let mut name_offset = block.len() * ENTRY;
        for (name, inode, kind) in block {
            bytes.extend(inode.to_le_bytes());
            bytes.extend((name_offset as u16).to_le_bytes());
            bytes.extend([file_type(*kind), 0]);
            name_offset += name.len();
        }
        bytes.extend(block.iter().flat_map(|(name, ..)| *name));
        if !rest.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
    }
    bytes
}

/// What a directory lists: its entries, itself and its parent, in the order of their bytes.
pub fn listing<'a>(inodes: &'a [Inode<'_>], itself: u32) -> Vec<(&'a [u8], u64, FileType)> {
    let node = inodes[itself as usize].node;
    let number = |index: u32| inodes[index as usize].place / SLOT;
    let mut all: Vec<_> = node
        .entries
        .iter()
        .map(|(name, child)| (&**name, number(*child), kind(inodes[*child as usize].node.mode)))
        .chain([
            (b".".as_slice(), number(itself), FileType::Directory),
            (b"..".as_slice(), number(node.parent), FileType::Directory),
        ])
        .collect();
    all.sort_unstable_by_key(|(name, ..)| *name);
    all
}
