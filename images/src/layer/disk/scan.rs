//! The first walk over the tree: everything but the content of files.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat2, readlinkat, seek, statat};
use rustix::io::Errno;

use super::BLOCK;
use crate::layer::lowers::{INSIDE, is_whiteout};
use crate::layer::metadata::Metadata;
use crate::layer::{LayerError, Limits};

/// A file of any kind.
#[derive(Debug)]
pub struct Node {
    /// Its path in the image, without a slash in front; one of them, if it has several names.
    pub path: Vec<u8>,
    /// Kind and permissions, as in `stat(2)`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Names, and for directories what `..` adds.
    pub links: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of content; of a directory none.
    pub size: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The target of a symbolic link.
    pub target: Vec<u8>,
    /// The ranges of a regular file with holes that hold data.
    pub extents: Option<Vec<Range<u64>>>,
    /// Bytes of disk the file takes on the host.
    pub allocated: u64,
    /// A directory's names in the order of their bytes, and the places of their nodes in the list.
    pub entries: Vec<(Box<[u8]>, u32)>,
    /// The place of a directory's parent in the list.
    pub parent: u32,
}

/// A file as chunks of one size, of which some are holes.
#[derive(Debug)]
pub struct Chunks {
    /// The size of a chunk in blocks, as a power of two.
    pub bits: u8,
    /// Which chunks hold data.
    pub has_data: Vec<bool>,
}

impl Node {
    /// The chunks of a file with holes; `None` if no chunk is one. There are at most 2^16, which bounds what is kept of a file.
    pub fn chunks(&self) -> Option<Chunks> {
        const MAX_CHUNKS: u64 = 1 << 16;

        let extents = self.extents.as_ref()?;
        let blocks = self.size.div_ceil(BLOCK);
        let bits = blocks.div_ceil(MAX_CHUNKS).next_power_of_two().trailing_zeros() as u8;
        let chunk = BLOCK << bits;
        let mut has_data = vec![false; self.size.div_ceil(chunk) as usize];
        for extent in extents.iter().filter(|extent| !extent.is_empty()) {
            has_data[(extent.start / chunk) as usize..=((extent.end - 1) / chunk) as usize].fill(true);
        }
        has_data.contains(&false).then_some(Chunks { bits, has_data })
    }
}

/// The kind of file that a mode says.
pub fn kind(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

/// What a directory entry says of a file's kind, in both formats.
pub fn file_type(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 1,
        FileType::Directory => 2,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}

/// Opens a path of the tree; nothing on the way is followed.
pub fn open(tree: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, LayerError> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat2(tree, path, flags, Mode::empty(), INSIDE).map_err(LayerError::io("open", path))
}

/// Everything in the tree; the root comes first, and the names of a directory stay together.
pub fn scan(tree: &OwnedFd, limits: &Limits) -> Result<Vec<Node>, LayerError> {
    let mut nodes = vec![root(tree)?];
    let mut linked = HashMap::new();
    let mut next = 0;
    // What is found is appended, so the end of the list moves on.
    while next < nodes.len() {
        if kind(nodes[next].mode) == FileType::Directory {
            directory(tree, next as u32, &mut nodes, &mut linked)?;
        }
        if nodes.len() as u64 > limits.max_entries {
            return Err(LayerError::TooLarge(format!("the limit of {} entries", limits.max_entries)));
        }
        next += 1;
    }
    Ok(nodes)
}

fn root(tree: &OwnedFd) -> Result<Node, LayerError> {
    let directory = open(tree, b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let stat = fstat(&directory).map_err(LayerError::io("examine", b"/"))?;
    let metadata = Metadata::of_file(&directory, &stat, b"/")?;
    Ok(node(Vec::new(), &stat, metadata))
}

/// Adds what is in the directory at `index`.
fn directory(
    tree: &OwnedFd,
    index: u32,
    nodes: &mut Vec<Node>,
    linked: &mut HashMap<(u64, u64), u32>,
) -> Result<(), LayerError> {
    let path = nodes[index as usize].path.clone();
    let here = open(tree, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = names(&here, &path)?;
    // The order in which a filesystem happens to list them must not show.
    names.sort_unstable();
    for name in names {
        let path = join(&path, &name);
        let stat = match statat(&here, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout of nothing is listed where overlayfs shows a lower directory as it is.
            Err(Errno::NOENT) => continue,
            other => other.map_err(LayerError::io("examine", &path))?,
        };
        if is_whiteout(&stat) {
            continue;
        }
        let is_directory = kind(stat.st_mode) == FileType::Directory;
        let key = (stat.st_dev, stat.st_ino);
        let known = if is_directory || stat.st_nlink < 2 { None } else { linked.get(&key).copied() };
        let child = if let Some(known) = known {
            nodes[known as usize].links += 1;
            known
        } else {
            let mut node = examine(tree, &here, &name, path, &stat)?;
            node.parent = index;
            let child = u32::try_from(nodes.len()).map_err(|_| LayerError::TooLarge("2^32 entries".to_owned()))?;
            nodes.push(node);
            if !is_directory && stat.st_nlink > 1 {
                linked.insert(key, child);
            }
            child
        };
        let parent = &mut nodes[index as usize];
        parent.links += u32::from(is_directory);
        parent.entries.push((name, child));
    }
    Ok(())
}

fn names(directory: &OwnedFd, path: &[u8]) -> Result<Vec<Box<[u8]>>, LayerError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(LayerError::io("read", path))? {
        let entry = entry.map_err(LayerError::io("read", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.into());
        }
    }
    Ok(names)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The node of what is called `name` in the directory `parent`, and `path` from the root.
fn examine(tree: &OwnedFd, parent: &OwnedFd, name: &[u8], path: Vec<u8>, stat: &Stat) -> Result<Node, LayerError> {
    match kind(stat.st_mode) {
        FileType::RegularFile => {
            let file = open(tree, &path, OFlags::RDONLY)?;
            let metadata = Metadata::of_file(&file, stat, &path)?;
            let mut node = node(path, stat, metadata);
            node.size = stat.st_size as u64;
            if node.allocated < node.size {
                node.extents = Some(extents(&file, node.size, &node.path)?);
            }
            Ok(node)
        }
        FileType::Directory => {
            let metadata = Metadata::of_file(open(tree, &path, OFlags::RDONLY | OFlags::DIRECTORY)?, stat, &path)?;
            Ok(node(path, stat, metadata))
        }
        FileType::Symlink => {
            let target = readlinkat(parent, name, Vec::new()).map_err(LayerError::io("read the link", &path))?;
            let mut node = node(path, stat, Metadata::of_stat(stat, Vec::new()));
            node.target = target.into_bytes();
            node.size = node.target.len() as u64;
            Ok(node)
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            let mut node = node(path, stat, Metadata::of_stat(stat, Vec::new()));
            node.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            Ok(node)
        }
        _ => Ok(node(path, stat, Metadata::of_stat(stat, Vec::new()))),
    }
}

fn node(path: Vec<u8>, stat: &Stat, metadata: Metadata) -> Node {
    Node {
        path,
        mode: stat.st_mode,
        uid: metadata.uid,
        gid: metadata.gid,
        links: if kind(stat.st_mode) == FileType::Directory { 2 } else { 1 },
        mtime: (metadata.mtime.0, metadata.mtime.1 as u32),
        size: 0,
        xattrs: metadata.xattrs,
        device: (0, 0),
        target: Vec::new(),
        extents: None,
        allocated: stat.st_blocks as u64 * 512,
        entries: Vec::new(),
        parent: 0,
    }
}

/// Where a file has data.
fn extents(file: &OwnedFd, size: u64, path: &[u8]) -> Result<Vec<Range<u64>>, LayerError> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            other => other.map_err(LayerError::io("look for holes in", path))?,
        };
        at = seek(file, SeekFrom::Hole(start)).map_err(LayerError::io("look for holes in", path))?;
        extents.push(start..at.min(size));
    }
    Ok(extents)
}
