//! The directories of the layer being filled, reached by descriptor only.
//!
//! A path in an archive is resolved one component at a time. A component that is a symbolic link, in this layer or a
//! lower one, is followed *within the root*, as the image's own processes would see it; nothing can lead outside.
//! What comes out is a canonical path: real directories of this layer from the root down.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, mkdirat, openat, openat2, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use super::LayerError;
use super::limits::MAX_PATH;
use super::lowers::{INSIDE, Lowers, is_whiteout};
use super::metadata::Metadata;
use super::remove::remove_all;

/// Descriptors kept open at most.
const CACHE: usize = 128;
/// Symbolic links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The layer being filled, over the layers below.
pub struct Tree<'a> {
    root: Rc<OwnedFd>,
    lowers: Lowers<'a>,
    /// Open directories by canonical path.
    cache: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Metadata of directories, set at the end: a directory's time changes with its content, and its set-group-id bit
    /// and default ACL would pass to new files.
    directories: BTreeMap<Vec<u8>, Metadata>,
    opaque: BTreeSet<Vec<u8>>,
}

/// A directory of this layer.
#[derive(Clone)]
pub struct Place {
    /// Canonical path; empty for the root.
    pub path: Vec<u8>,
    pub directory: Rc<OwnedFd>,
}

impl Place {
    /// The canonical path of a name in here.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path[..], b"/", name].concat() }
    }
}

impl<'a> Tree<'a> {
    pub fn new(root: OwnedFd, lowers: Lowers<'a>) -> Self {
        Self {
            root: Rc::new(root),
            lowers,
            cache: HashMap::new(),
            directories: BTreeMap::new(),
            opaque: BTreeSet::new(),
        }
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    pub fn lowers(&self) -> &Lowers<'a> {
        &self.lowers
    }

    pub fn opaque(&self) -> impl Iterator<Item = &[u8]> {
        self.opaque.iter().map(Vec::as_slice)
    }

    /// The directory `components` name, made where it is missing.
    pub fn directory(&mut self, components: &[&[u8]]) -> Result<Place, LayerError> {
        let joined = components.join(&b'/');
        if let Some(directory) = self.cached(&joined) {
            return Ok(Place { path: joined, directory });
        }
        let mut at = self.root_place();
        let mut todo: VecDeque<Vec<u8>> = components.iter().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = self.parent(&at)?;
                    continue;
                }
                _ => {}
            }
            match self.enter(&at, &name)? {
                Step::Into(place) => at = place,
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::entry(&joined, "leads through too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        at = self.root_place();
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
            }
            if at.path.len() > MAX_PATH {
                return Err(LayerError::entry(&joined, "leads to a path that is too long"));
            }
        }
        Ok(at)
    }

    fn root_place(&self) -> Place {
        Place { path: Vec::new(), directory: Rc::clone(&self.root) }
    }

    fn cached(&self, path: &[u8]) -> Option<Rc<OwnedFd>> {
        if path.is_empty() { Some(Rc::clone(&self.root)) } else { self.cache.get(path).cloned() }
    }

    fn remember(&mut self, place: &Place) {
        if self.cache.len() >= CACHE {
            self.cache.clear();
        }
        self.cache.insert(place.path.clone(), Rc::clone(&place.directory));
    }

    /// The parent of a canonical path; the root is its own.
    fn parent(&mut self, at: &Place) -> Result<Place, LayerError> {
        let end = at.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let path = at.path[..end].to_vec();
        let directory = match self.cached(&path) {
            Some(directory) => directory,
            None => Rc::new(
                openat2(&self.root, &path, DIRECTORY, Mode::empty(), INSIDE).map_err(LayerError::io("open", &path))?,
            ),
        };
        Ok(Place { path, directory })
    }

    /// One step down from `at`.
    fn enter(&mut self, at: &Place, name: &[u8]) -> Result<Step, LayerError> {
        let path = at.join(name);
        if let Some(directory) = self.cached(&path) {
            return Ok(Step::Into(Place { path, directory }));
        }
        match openat(&at.directory, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                let place = Place { path, directory: Rc::new(directory) };
                self.remember(&place);
                Ok(Step::Into(place))
            }
            Err(Errno::NOENT) => self.enter_missing(at, name, &path),
            // O_NOFOLLOW with O_DIRECTORY reports a link as "not a directory".
            Err(Errno::NOTDIR | Errno::LOOP) => self.enter_other(at, name, &path),
            Err(error) => Err(LayerError::io("open", &path)(error)),
        }
    }

    /// `name` is not in this layer: it is what the layers below have, or a new directory.
    fn enter_missing(&mut self, at: &Place, name: &[u8], path: &[u8]) -> Result<Step, LayerError> {
        let metadata = match self.find_below(path)? {
            None => Metadata { mode: 0o755, ..Metadata::default() },
            Some(found) => match FileType::from_raw_mode(found.stat.st_mode) {
                FileType::Symlink => return Ok(Step::Link(self.lowers.read_link(&found, path)?)),
                FileType::Directory => {
                    let directory = self.lowers.open(&found, path)?;
                    Metadata::of_file(&directory, &found.stat, path)?
                }
                _ => {
                    return Err(LayerError::entry(path, "is not a directory, but an entry wants to be in it"));
                }
            },
        };
        self.make(at, name, metadata).map(Step::Into)
    }

    /// `name` is in this layer, but no directory.
    fn enter_other(&mut self, at: &Place, name: &[u8], path: &[u8]) -> Result<Step, LayerError> {
        let stat = stat(at, name)?.ok_or_else(|| LayerError::entry(path, "vanished"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = readlinkat(&at.directory, name, Vec::new()).map_err(LayerError::io("read the link", path))?;
            return Ok(Step::Link(target.into_bytes()));
        }
        if is_whiteout(&stat) {
            return self.make(at, name, Metadata { mode: 0o755, ..Metadata::default() }).map(Step::Into);
        }
        Err(LayerError::entry(path, "is not a directory, but an entry wants to be in it"))
    }

    /// What `path` is in the layers below, unless an opaque directory of this layer hides it.
    pub fn find_below(&self, path: &[u8]) -> Result<Option<super::lowers::Found>, LayerError> {
        if self.lowers.is_empty() || self.opaque.contains(&b""[..]) {
            return Ok(None);
        }
        let hidden = path.iter().enumerate().any(|(index, byte)| *byte == b'/' && self.opaque.contains(&path[..index]));
        if hidden { Ok(None) } else { self.lowers.find(path) }
    }

    /// Makes a directory, or takes the one that is there; anything else in its place is replaced.
    pub fn make(&mut self, at: &Place, name: &[u8], metadata: Metadata) -> Result<Place, LayerError> {
        let path = at.join(name);
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        let mut result = mkdirat(&at.directory, name, mode);
        if result == Err(Errno::EXIST)
            && let Some(stat) = stat(at, name)?
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
        {
            unlinkat(&at.directory, name, AtFlags::empty()).map_err(LayerError::io("replace", &path))?;
            if is_whiteout(&stat) {
                self.opaque.insert(path.clone());
            }
            result = mkdirat(&at.directory, name, mode);
        }
        match result {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(LayerError::io("make the directory", &path)(error)),
        }
        let directory = openat(&at.directory, name, DIRECTORY, Mode::empty()).map_err(LayerError::io("open", &path))?;
        let place = Place { path, directory: Rc::new(directory) };
        self.directories.insert(place.path.clone(), metadata);
        self.remember(&place);
        Ok(place)
    }

    /// Remembers the root's metadata.
    pub fn set_root(&mut self, metadata: Metadata) {
        self.directories.insert(Vec::new(), metadata);
    }

    /// Makes room for a new file.
    pub fn clear(&mut self, at: &Place, name: &[u8]) -> Result<(), LayerError> {
        let path = at.join(name);
        let Some(stat) = stat(at, name)? else {
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.forget(&path);
        }
        remove_all(&at.directory, name).map_err(LayerError::io("replace", &path))
    }

    /// Hides `name` of the layers below; what this layer itself has there stays.
    pub fn white_out(&mut self, at: &Place, name: &[u8]) -> Result<(), LayerError> {
        let path = at.join(name);
        match stat(at, name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.opaque.insert(path);
            }
            Some(_) => {}
            None => {
                make_whiteout(&at.directory, name).map_err(LayerError::io("white out", &path))?;
            }
        }
        Ok(())
    }

    /// Hides everything the layers below have in `at`.
    pub fn make_opaque(&mut self, at: &Place) {
        self.opaque.insert(at.path.clone());
    }

    fn forget(&mut self, removed: &[u8]) {
        let stays =
            |path: &[u8]| !(path.starts_with(removed) && (path.len() == removed.len() || path[removed.len()] == b'/'));
        self.cache.retain(|path, _| stays(path));
        self.directories.retain(|path, _| stays(path));
        self.opaque.retain(|path| stays(path));
    }

    /// Sets what had to wait: the metadata of all directories, and an opaque root.
    pub fn finish(&mut self) -> Result<(), LayerError> {
        // overlayfs does not look for the mark on a layer's root: name by name does the same.
        if self.opaque.remove(&b""[..]) && !self.lowers.is_empty() {
            for name in self.lowers.root_names()? {
                let root = self.root_place();
                self.white_out(&root, &name)?;
            }
        }
        if !self.directories.contains_key(&b""[..]) {
            let metadata = match self.lowers.root()? {
                None => Metadata { mode: 0o755, ..Metadata::default() },
                Some(root) => {
                    let stat = rustix::fs::fstat(root).map_err(LayerError::io("examine", b"/"))?;
                    Metadata::of_file(root, &stat, b"/")?
                }
            };
            self.set_root(metadata);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (path, metadata) in &self.directories {
            let name = if path.is_empty() { &b"."[..] } else { path };
            let directory =
                openat2(&self.root, name, flags, Mode::empty(), INSIDE).map_err(LayerError::io("open", path))?;
            metadata.apply(&directory, path)?;
        }
        Ok(())
    }
}

/// Where one component leads.
enum Step {
    Into(Place),
    Link(Vec<u8>),
}

/// What `name` is in this layer.
pub fn stat(at: &Place, name: &[u8]) -> Result<Option<Stat>, LayerError> {
    match statat(&at.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(LayerError::io("examine", &at.join(name))(error)),
    }
}

/// A character device 0/0, which needs no privilege.
fn make_whiteout(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
}
