//! The layers below the one being unpacked, read-only. They are asked rarely: where an entry has no parent directory
//! in its own layer, for hard links to files of a lower layer, and for an opaque root.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::LayerError;

/// Every path below a directory that is not trusted is opened so.
pub const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// The directory with a layer's content, in the layer's directory.
pub const CONTENT: &str = "fs";
/// The file with the layer's opaque directories, each path ended by NUL, in the layer's directory.
pub const OPAQUE: &str = "opaque";

/// One layer below.
struct Lower<'a> {
    directory: BorrowedFd<'a>,
    opened: OnceCell<Opened>,
}

struct Opened {
    content: OwnedFd,
    opaque: HashSet<Vec<u8>>,
}

/// The layers below, topmost first.
pub struct Lowers<'a> {
    layers: Vec<Lower<'a>>,
    /// Gives one byte when all layers below are complete, end of file if one failed.
    gate: Option<File>,
    open: OnceCell<()>,
}

/// What a path is in the layers below.
pub struct Found {
    pub stat: Stat,
    layer: usize,
}

impl<'a> Lowers<'a> {
    pub fn new(directories: Vec<BorrowedFd<'a>>, gate: Option<File>) -> Self {
        let layers = directories.into_iter().map(|directory| Lower { directory, opened: OnceCell::new() }).collect();
        Self { layers, gate, open: OnceCell::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    fn wait(&self) -> Result<(), LayerError> {
        if self.open.get().is_some() {
            return Ok(());
        }
        if let Some(mut gate) = self.gate.as_ref() {
            gate.read_exact(&mut [0]).map_err(|_| LayerError::Below)?;
        }
        let _ = self.open.set(());
        Ok(())
    }

    fn layer(&self, index: usize) -> Result<&Opened, LayerError> {
        self.wait()?;
        let lower = &self.layers[index];
        if lower.opened.get().is_none() {
            let _ = lower.opened.set(Opened::new(lower.directory)?);
        }
        Ok(lower.opened.get().expect("it was just set"))
    }

    /// What `path`, canonical and not empty, is in the layers below, seen as overlayfs merges them.
    pub fn find(&self, path: &[u8]) -> Result<Option<Found>, LayerError> {
        for index in 0..self.layers.len() {
            let layer = self.layer(index)?;
            match layer.open(path, OFlags::PATH) {
                Ok(found) => {
                    let stat = fstat(found).map_err(LayerError::io("examine", path))?;
                    return Ok((!is_whiteout(&stat)).then_some(Found { stat, layer: index }));
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if layer.hides_below(path)? => {
                    return Ok(None);
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(LayerError::io("open", path)(error)),
            }
        }
        Ok(None)
    }

    /// Opens what was found, for reading.
    pub fn open(&self, found: &Found, path: &[u8]) -> Result<OwnedFd, LayerError> {
        self.layer(found.layer)?.open(path, OFlags::RDONLY).map_err(LayerError::io("open", path))
    }

    /// The target of a symbolic link that was found.
    pub fn read_link(&self, found: &Found, path: &[u8]) -> Result<Vec<u8>, LayerError> {
        let link = self.layer(found.layer)?.open(path, OFlags::PATH).map_err(LayerError::io("open", path))?;
        let target = readlinkat(link, "", Vec::new()).map_err(LayerError::io("read the link", path))?;
        Ok(target.into_bytes())
    }

    /// The root directory of the topmost layer below.
    pub fn root(&self) -> Result<Option<&OwnedFd>, LayerError> {
        if self.is_empty() { Ok(None) } else { Ok(Some(&self.layer(0)?.content)) }
    }

    /// Every name in the roots of all layers below.
    pub fn root_names(&self) -> Result<HashSet<Vec<u8>>, LayerError> {
        let mut names = HashSet::new();
        for index in 0..self.layers.len() {
            let entries = rustix::fs::Dir::read_from(&self.layer(index)?.content);
            for entry in entries.map_err(LayerError::io("read", b"/"))? {
                let entry = entry.map_err(LayerError::io("read", b"/"))?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.insert(name.to_vec());
                }
            }
        }
        Ok(names)
    }
}

impl Opened {
    fn new(directory: BorrowedFd<'_>) -> Result<Self, LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let content = openat2(directory, CONTENT, flags, Mode::empty(), INSIDE)
            .map_err(LayerError::io("open", b"a layer below"))?;
        Ok(Self { content, opaque: read_opaque(directory)? })
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(&self.content, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), INSIDE)
    }

    /// Whether something on the way to `path` keeps overlayfs from looking further down.
    fn hides_below(&self, path: &[u8]) -> Result<bool, LayerError> {
        for (index, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let ancestor = &path[..index];
            match statat(&self.content, ancestor, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                    return Ok(true);
                }
                Ok(_) if self.opaque.contains(ancestor) => return Ok(true),
                Ok(_) => {}
                Err(Errno::NOENT) => return Ok(false),
                Err(error) => return Err(LayerError::io("examine", ancestor)(error)),
            }
        }
        Ok(false)
    }
}

/// The opaque directories of the layer in `directory`.
pub fn read_opaque(directory: impl AsFd) -> Result<HashSet<Vec<u8>>, LayerError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut list = Vec::new();
    match openat2(directory, OPAQUE, flags, Mode::empty(), INSIDE) {
        Ok(file) => {
            File::from(file)
                .read_to_end(&mut list)
                .map_err(LayerError::io("read", b"the list of opaque directories"))?;
        }
        Err(Errno::NOENT) => {}
        Err(error) => {
            return Err(LayerError::io("open", b"the list of opaque directories")(error));
        }
    }
    Ok(list.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Whether this is overlayfs's mark of a deleted name: a character device 0/0.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
