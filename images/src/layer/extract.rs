//! Applies the entries of a layer's archive to a directory.
//!
//! Rules: the OCI image specification's layer document. An absolute name counts from the root, a name that climbs out of
//! the root with `..` is refused, a later entry replaces an earlier one, and two directories merge.

use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstatvfs, linkat, mknodat, openat, symlinkat};
use rustix::io::{Errno, write};

use super::limits::{MAX_PATH, MAX_SPARSE};
use super::lowers::{Lowers, OPAQUE, is_whiteout};
use super::metadata::Metadata;
use super::tree::{Place, Tree, stat};
use super::{LayerError, Limits};
use crate::tar::{Entry, Extent, Kind, Reader};

/// Prefix of the names that hide something of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names reserved for the whiteout format itself.
const RESERVED: &[u8] = b".wh..wh.";
/// Hides everything the layers below have in its directory.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Bytes written between two looks at the free space.
const SPACE_CHECK: u64 = 64 << 20;

/// Fills `content` from the archive; the paths of opaque directories are listed in `directory`.
pub fn extract(
    archive: impl BufRead,
    directory: &OwnedFd,
    content: OwnedFd,
    lowers: Lowers<'_>,
    limits: &Limits,
) -> Result<u64, LayerError> {
    let mut extractor = Extractor { tree: Tree::new(content, lowers), limits, size: 0, until_space_check: 0 };
    let mut reader = Reader::new(archive);
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(LayerError::TooLarge(format!("the limit of {} entries", limits.max_entries)));
        }
        extractor.apply(entry, &mut reader)?;
    }
    // The digest covers what follows the last entry, too.
    std::io::copy(&mut reader.into_inner(), &mut std::io::sink()).map_err(LayerError::io("read", b"the archive"))?;
    extractor.tree.finish()?;
    extractor.list_opaque(directory)?;
    Ok(extractor.size)
}

struct Extractor<'a> {
    tree: Tree<'a>,
    limits: &'a Limits,
    /// Bytes of file content written.
    size: u64,
    until_space_check: u64,
}

impl Extractor<'_> {
    fn apply<R: BufRead>(&mut self, mut entry: Entry, reader: &mut Reader<R>) -> Result<(), LayerError> {
        let path = std::mem::take(&mut entry.path);
        let components = components(&path)?;
        if components.iter().any(|name| name.starts_with(RESERVED) && *name != OPAQUE_MARK) {
            return Ok(());
        }
        entry.path.clone_from(&path);
        let Some((name, parents)) = components.split_last() else {
            return self.apply_root(entry);
        };
        let parent = self.tree.directory(parents)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(&parent, name, hidden, &path);
        }
        let metadata = Metadata::of_entry(&mut entry)?;
        match entry.kind {
            Kind::Directory => self.tree.make(&parent, name, metadata).map(drop),
            Kind::File => self.file(&parent, name, &entry, &metadata, reader),
            Kind::HardLink => self.hard_link(&parent, name, &entry),
            Kind::Symlink => self.symlink(&parent, name, &entry.link, &metadata),
            Kind::CharDevice => self.node(&parent, name, FileType::CharacterDevice, entry.device, &metadata),
            Kind::BlockDevice => self.node(&parent, name, FileType::BlockDevice, entry.device, &metadata),
            Kind::Fifo => self.node(&parent, name, FileType::Fifo, (0, 0), &metadata),
            Kind::Unknown(flag) => {
                let flag = flag.escape_ascii();
                Err(LayerError::entry(&path, format!("has the type '{flag}', which berth does not know")))
            }
        }
    }

    fn apply_root(&mut self, mut entry: Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            return Err(LayerError::entry(&entry.path, "would replace the root directory"));
        }
        let metadata = Metadata::of_entry(&mut entry)?;
        self.tree.set_root(metadata);
        Ok(())
    }

    fn hide(&mut self, parent: &Place, name: &[u8], hidden: &[u8], path: &[u8]) -> Result<(), LayerError> {
        if name == OPAQUE_MARK {
            self.tree.make_opaque(parent);
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::entry(path, "is a whiteout of nothing"));
        }
        self.tree.white_out(parent, hidden)
    }

    /// Runs `create`; where something has the name already, it gives way.
    fn replacing(
        &mut self,
        parent: &Place,
        name: &[u8],
        action: &'static str,
        create: impl Fn(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Result<(), LayerError> {
        let mut result = create(&parent.directory);
        if result == Err(Errno::EXIST) {
            self.tree.clear(parent, name)?;
            result = create(&parent.directory);
        }
        result.map_err(LayerError::io(action, &parent.join(name)))
    }

    /// Makes an empty file for writing.
    fn create(&mut self, parent: &Place, name: &[u8], mode: u32) -> Result<OwnedFd, LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let mut result = openat(&parent.directory, name, flags, mode);
        if matches!(result, Err(Errno::EXIST)) {
            self.tree.clear(parent, name)?;
            result = openat(&parent.directory, name, flags, mode);
        }
        result.map_err(LayerError::io("create", &parent.join(name)))
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &Place,
        name: &[u8],
        entry: &Entry,
        metadata: &Metadata,
        reader: &mut Reader<R>,
    ) -> Result<(), LayerError> {
        let file = self.create(parent, name, metadata.mode)?;
        let whole = [Extent { offset: 0, length: entry.size }];
        let extents = entry.extents.as_deref().unwrap_or(&whole);
        if entry.extents.is_some() {
            if entry.real_size > MAX_SPARSE {
                return Err(LayerError::entry(&entry.path, "is a sparse file of more than 1 TiB"));
            }
            rustix::fs::ftruncate(&file, entry.real_size).map_err(LayerError::io("extend", &entry.path))?;
        }
        for extent in extents {
            if entry.extents.is_some() {
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(extent.offset))
                    .map_err(LayerError::io("seek in", &entry.path))?;
            }
            reader.read_data(extent.length, |piece| self.write(&file, piece, &entry.path))?;
        }
        metadata.apply_to_new(&file, &entry.path)
    }

    fn write(&mut self, file: &OwnedFd, mut piece: &[u8], path: &[u8]) -> Result<(), LayerError> {
        let length = piece.len() as u64;
        self.size += length;
        if self.until_space_check < length {
            self.check_space()?;
            self.until_space_check = SPACE_CHECK;
        }
        self.until_space_check = self.until_space_check.saturating_sub(length);
        while !piece.is_empty() {
            match write(file, piece) {
                Ok(written) => piece = &piece[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(LayerError::io("write", path)(error)),
            }
        }
        Ok(())
    }

    fn check_space(&self) -> Result<(), LayerError> {
        let space = fstatvfs(self.tree.root()).map_err(LayerError::io("examine the file system of", b"/"))?;
        if space.f_bavail.saturating_mul(space.f_frsize) < self.limits.min_free {
            return Err(LayerError::DiskFull);
        }
        Ok(())
    }

    fn symlink(&mut self, parent: &Place, name: &[u8], target: &[u8], metadata: &Metadata) -> Result<(), LayerError> {
        let path = parent.join(name);
        if target.is_empty() || target.len() >= MAX_PATH {
            return Err(LayerError::entry(&path, "is a symbolic link with an empty or too long target"));
        }
        self.replacing(parent, name, "make the link", |directory| symlinkat(target, directory, name))?;
        metadata.apply_at(&parent.directory, name, &path)
    }

    fn node(
        &mut self,
        parent: &Place,
        name: &[u8],
        kind: FileType,
        (major, minor): (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(metadata.mode);
        self.replacing(parent, name, "make the device", |directory| mknodat(directory, name, kind, mode, device))?;
        metadata.apply_at(&parent.directory, name, &parent.join(name))
    }

    fn hard_link(&mut self, parent: &Place, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
        let refuse = |reason: &str| {
            let target = entry.link.escape_ascii();
            LayerError::entry(&entry.path, format!("is a hard link to '{target}', {reason}"))
        };
        let target = components(&entry.link).map_err(|_| refuse("which is outside the image"))?;
        let (target_name, target_parents) = target.split_last().ok_or_else(|| refuse("the root directory"))?;
        let target_parent = self.tree.directory(target_parents)?;
        match stat(&target_parent, target_name)? {
            Some(stat) if is_whiteout(&stat) => return Err(refuse("which is deleted")),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(refuse("which is a directory"));
            }
            Some(_) => {}
            None => self
                .copy_up(&target_parent, target_name)?
                .then_some(())
                .ok_or_else(|| refuse("which does not exist"))?,
        }
        if target_parent.join(target_name) == parent.join(name) {
            return Ok(());
        }
        self.replacing(parent, name, "make the hard link", |directory| {
            linkat(&target_parent.directory, *target_name, directory, name, AtFlags::empty())
        })
    }

    /// Copies a file of a lower layer into this one, so that it can be linked to; `false` if there is none.
    fn copy_up(&mut self, parent: &Place, name: &[u8]) -> Result<bool, LayerError> {
        let path = parent.join(name);
        let Some(found) = self.tree.find_below(&path)? else {
            return Ok(false);
        };
        let kind = FileType::from_raw_mode(found.stat.st_mode);
        match kind {
            FileType::Directory => return Ok(false),
            FileType::RegularFile => {
                let source = self.tree.lowers().open(&found, &path)?;
                let metadata = Metadata::of_file(&source, &found.stat, &path)?;
                let target = self.create(parent, name, metadata.mode)?;
                let mut source = std::fs::File::from(source);
                let mut target = std::fs::File::from(target);
                self.size += std::io::copy(&mut source, &mut target).map_err(LayerError::io("copy", &path))?;
                metadata.apply_to_new(&target, &path)?;
            }
            FileType::Symlink => {
                let target = self.tree.lowers().read_link(&found, &path)?;
                self.symlink(parent, name, &target, &Metadata::of_stat(&found.stat, Vec::new()))?;
            }
            _ => {
                let device = (rustix::fs::major(found.stat.st_rdev), rustix::fs::minor(found.stat.st_rdev));
                self.node(parent, name, kind, device, &Metadata::of_stat(&found.stat, Vec::new()))?;
            }
        }
        Ok(true)
    }

    /// Writes the list of opaque directories; the attribute itself takes a privilege that unpacking does not have.
    fn list_opaque(&self, directory: &OwnedFd) -> Result<(), LayerError> {
        let list: Vec<u8> = self.tree.opaque().flat_map(|path| path.iter().copied().chain([0])).collect();
        if list.is_empty() {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let what = b"the list of opaque directories";
        let file = openat(directory, OPAQUE, flags, Mode::RUSR).map_err(LayerError::io("create", what))?;
        std::fs::File::from(file).write_all(&list).map_err(LayerError::io("write", what))
    }
}

/// The components of a name, cleaned as docker cleans them: `a/./b` and `a/x/../b` are `a/b`, `/a` is `a`.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    if path.len() > MAX_PATH {
        return Err(LayerError::entry(path, "has a name that is too long"));
    }
    if path.contains(&0) {
        return Err(LayerError::entry(path, "has a NUL byte in its name"));
    }
    let mut components = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or_else(|| LayerError::entry(path, "leads out of the image"))?;
            }
            _ if name.len() > 255 => {
                return Err(LayerError::entry(path, "has a name that is too long"));
            }
            _ => components.push(name),
        }
    }
    Ok(components)
}
