//! The bytes of ext4: superblock, groups, inodes and directories.

use rustix::fs::FileType;

use super::super::BLOCK;
use super::super::scan::{file_type, kind};
use super::extents::ROOT;
use super::layout::{GROUP, Geometry, Inode, RESERVED, has_blocks};

/// Where the superblock lies.
pub const SUPERBLOCK: u64 = 1024;
/// Bytes of a group's descriptor.
pub const DESCRIPTOR: u64 = 32;
/// Bytes of an inode.
pub const INODE: u64 = 256;
/// Bytes of a directory entry without its name.
const ENTRY: usize = 8;

/// Writes numbers into a record at their places.
struct Record<'a>(&'a mut [u8]);

impl Record<'_> {
    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The superblock. `free_inodes`: how many are not in use.
pub fn superblock(geometry: &Geometry, free_inodes: u64) -> Vec<u8> {
    /// Inodes have extended attributes.
    const COMPAT_EXT_ATTR: u32 = 0x8;
    /// Copies of the superblock are only where it says; here, nowhere.
    const COMPAT_SPARSE_SUPER2: u32 = 0x200;
    /// Directory entries say the kind of file.
    const INCOMPAT_FILETYPE: u32 = 0x2;
    const INCOMPAT_EXTENTS: u32 = 0x40;
    /// A group's bitmaps and inodes may lie in another.
    const INCOMPAT_FLEX_BG: u32 = 0x200;
    const RO_COMPAT_LARGE_FILE: u32 = 0x2;
    const RO_COMPAT_HUGE_FILE: u32 = 0x8;
    /// A directory with more links than can be counted has one.
    const RO_COMPAT_DIR_NLINK: u32 = 0x20;
    const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
    /// Mount options that are set: extended attributes of users, and access control lists.
    const DEFAULT_MOUNT_OPTIONS: u32 = 0xc;

    let mut bytes = vec![0; 1024];
    let mut record = Record(&mut bytes);
    record.u32(0x00, (geometry.groups * geometry.inodes_per_group) as u32);
    record.u32(0x04, geometry.blocks as u32);
    record.u32(0x0c, (geometry.blocks - geometry.used) as u32);
    record.u32(0x10, free_inodes as u32);
    // The sizes of blocks and clusters, as powers of two of 1024.
    for at in [0x18, 0x1c] {
        record.u32(at, (BLOCK / 1024).trailing_zeros());
    }
    for at in [0x20, 0x24] {
        record.u32(at, GROUP as u32);
    }
    record.u32(0x28, geometry.inodes_per_group as u32);
    // It need not be checked, however often it was mounted.
    record.u16(0x36, u16::MAX);
    record.u16(0x38, 0xef53);
    // Clean; errors do not keep it from being read.
    record.u16(0x3a, 1);
    record.u16(0x3c, 1);
    // The revision with inodes of any size.
    record.u32(0x4c, 1);
    record.u32(0x54, RESERVED + 1);
    record.u16(0x58, INODE as u16);
    record.u32(0x5c, COMPAT_EXT_ATTR | COMPAT_SPARSE_SUPER2);
    record.u32(0x60, INCOMPAT_FILETYPE | INCOMPAT_EXTENTS | INCOMPAT_FLEX_BG);
    record.u32(0x64, RO_COMPAT_LARGE_FILE | RO_COMPAT_HUGE_FILE | RO_COMPAT_DIR_NLINK | RO_COMPAT_EXTRA_ISIZE);
    // Its UUID, the same for all, since the same layers give the same bytes.
    record.0[0x68..0x78].copy_from_slice(b"berth guest disk");
    record.0[0x78..0x7d].copy_from_slice(b"berth");
    record.u32(0x100, DEFAULT_MOUNT_OPTIONS);
    for at in [0x15c, 0x15e] {
        record.u16(at, EXTRA);
    }
    // Groups that share a place for their bitmaps, as a power of two.
    record.0[0x174] = 4;
    bytes
}

/// The descriptor of a group.
pub fn descriptor(geometry: &Geometry, group: u64, free_inodes: u64, directories: u64) -> [u8; DESCRIPTOR as usize] {
    let mut bytes = [0; DESCRIPTOR as usize];
    let mut record = Record(&mut bytes);
    record.u32(0x0, geometry.block_bitmap(group) as u32);
    record.u32(0x4, geometry.inode_bitmap(group) as u32);
    record.u32(0x8, geometry.inode_table(group) as u32);
    let end = geometry.blocks.min((group + 1) * GROUP);
    record.u16(0xc, (end - geometry.used.clamp(group * GROUP, end)) as u16);
    record.u16(0xe, free_inodes as u16);
    record.u16(0x10, directories as u16);
    bytes
}

/// A bitmap in which the first `used` of `count` are in use. What lies beyond `count` counts as in use.
pub fn bitmap(used: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![0xff; BLOCK as usize];
    for free in used..count {
        bytes[(free / 8) as usize] &= !(1 << (free % 8));
    }
    bytes
}

/// Bytes of an inode behind the first 128 that are in use.
const EXTRA: u16 = 32;

/// The inode of a node; `root` as `extents::tree` makes it.
pub fn inode(inode: &Inode<'_>, root: &[u8; ROOT]) -> [u8; INODE as usize] {
    /// Its content is found by extents.
    const EXTENTS: u32 = 0x8_0000;
    /// Most links of a directory that are counted.
    const MAX_LINKS: u32 = 65_000;

    let node = inode.node;
    let mut bytes = [0; INODE as usize];
    let mut record = Record(&mut bytes);
    record.u16(0x00, node.mode as u16);
    record.u16(0x02, node.uid as u16);
    record.u32(0x04, inode.size as u32);
    let (seconds, extra) = time(node.mtime);
    for (at, at_extra) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88)] {
        record.u32(at, seconds);
        record.u32(at_extra, extra);
    }
    record.u16(0x18, node.gid as u16);
    record.u16(0x1a, if node.links > MAX_LINKS { 1 } else { node.links as u16 });
    // In units of 512 bytes.
    let sectors = inode.blocks * (BLOCK / 512);
    record.u32(0x1c, sectors as u32);
    record.u16(0x74, (sectors >> 32) as u16);
    let content = &mut record.0[0x28..0x28 + ROOT];
    match kind(node.mode) {
        _ if has_blocks(node) => content.copy_from_slice(root),
        FileType::Symlink => content[..node.target.len()].copy_from_slice(&node.target),
        _ => content[..8].copy_from_slice(&device(node.device)),
    }
    record.u32(0x20, if has_blocks(node) { EXTENTS } else { 0 });
    record.u32(0x68, inode.xattrs.as_ref().map_or(0, |(block, _)| *block));
    record.u32(0x6c, (inode.size >> 32) as u32);
    record.u16(0x78, (node.uid >> 16) as u16);
    record.u16(0x7a, (node.gid >> 16) as u16);
    record.u16(0x80, EXTRA);
    bytes
}

/// A time as two numbers: the seconds' lower 32 bits, and nanoseconds above two more bits of the seconds. What is out of range
/// becomes the nearest time in it.
fn time((seconds, nanoseconds): (i64, u32)) -> (u32, u32) {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = FIRST + (1 << 34) - 1;

    let seconds = seconds.clamp(FIRST, LAST);
    let lower = seconds as i32;
    let epoch = (seconds - i64::from(lower)) >> 32;
    (lower as u32, epoch as u32 | nanoseconds << 2)
}

/// The number of a device: small ones in the first four bytes, others in the four after them. Zeros for what is no device.
fn device((major, minor): (u32, u32)) -> [u8; 8] {
    let (mut small, mut large) = (0, 0);
    if major < 256 && minor < 256 {
        small = major << 8 | minor;
    } else {
        large = (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12;
    }
    (u64::from(small) | u64::from(large) << 32).to_le_bytes()
}

/// Bytes of an entry whose name has so many.
fn entry_size(name: usize) -> usize {
    (ENTRY + name).next_multiple_of(4)
}

/// Bytes of a directory with names of these lengths, beside its own and its parent's.
pub fn directory_size(names: impl IntoIterator<Item = usize>) -> u64 {
    let (mut blocks, mut used) = (1, entry_size(1) + entry_size(2));
    for name in names {
        let size = entry_size(name);
        if used + size > BLOCK as usize {
            blocks += 1;
            used = 0;
        }
        used += size;
    }
    blocks * BLOCK
}

/// A directory's content: blocks, each filled by its entries. An entry says how far it is to the next.
pub fn directory<'a>(entries: impl IntoIterator<Item = (&'a [u8], u32, FileType)>) -> Vec<u8> {
    let block = BLOCK as usize;
    let mut bytes: Vec<u8> = Vec::new();
    // Where the last entry begins.
    let mut last = 0;
    let fill = |bytes: &mut Vec<u8>, last: usize| {
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        let rest = (bytes.len() - last) as u16;
        bytes[last + 4..last + 6].copy_from_slice(&rest.to_le_bytes());
    };
    for (name, number, kind) in entries {
        let size = entry_size(name.len());
        if bytes.len() % block + size > block {
            fill(&mut bytes, last);
        }
        last = bytes.len();
        bytes.extend(number.to_le_bytes());
        bytes.extend((size as u16).to_le_bytes());
        bytes.extend([name.len() as u8, file_type(kind)]);
        bytes.extend(name);
        bytes.resize(last + size, 0);
    }
    fill(&mut bytes, last);
    bytes
}
