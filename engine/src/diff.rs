//! What a container has changed in its image: its upper directory, read as overlayfs wrote it
//! (`Documentation/filesystems/overlayfs.rst`).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, openat, openat2, statat};
use rustix::io::Errno;
use serde::Serialize;

use crate::container::Container;
use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::microvm;
use crate::wasm;

/// Directories within directories: each takes a descriptor, and a container can nest them without end.
const MAX_DEPTH: usize = 400;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// It was added.
    #[serde(rename = "A")]
    Added,
    /// It was changed, or something in it was.
    #[serde(rename = "C")]
    Changed,
    /// It was deleted.
    #[serde(rename = "D")]
    Deleted,
}

impl Kind {
    /// `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// Where in the container.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: Kind,
}

/// What a container has changed, by path. Places that something is mounted on are none of its doing.
pub fn diff(container: &Container) -> Result<Vec<Change>> {
    microvm::refuse(container, "compare", "`berth exec` runs a command that looks")?;
    wasm::refuse_files(container, "compare")?;
    let dir = container.dir();
    let advice = format!("`berth rm {}` and create it anew", container.name());
    let config: Option<oci_spec::runtime::Spec> = document::read(&dir.join("config.json"), &advice)?;
    let mounts = config.as_ref().and_then(|config| config.mounts().as_ref());
    let mounts = mounts.into_iter().flatten().map(|mount| mount.destination().clone()).collect();
    compare(&dir.join("upper"), &container.record.lower_dirs, mounts)
}

/// Compares an upper directory with the layers below it, topmost first.
fn compare(upper: &Path, layers: &[PathBuf], mounts: BTreeSet<PathBuf>) -> Result<Vec<Change>> {
    let open = |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).attempt(|| format!("open {}", path.display()));
    let layers = layers.iter().map(|layer| open(layer)).collect::<Result<Vec<_>>>()?;
    let mut walk = Walk { layers, mounts, changes: Vec::new() };
    walk.directory(&open(upper)?, Path::new(""), Shown::Merged, 0)?;
    walk.changes.sort();
    Ok(walk.changes)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a directory of the upper layer shows of the image's directory of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// All that it does not have itself.
    Merged,
    /// Nothing: it, or one it lies in, is opaque.
    Replaced,
    /// The image has no such directory.
    New,
}

/// Something in a directory of the upper layer.
struct Entry<'a> {
    name: &'a OsStr,
    path: &'a Path,
    stat: Stat,
    /// What the image has there.
    below: Option<Stat>,
}

struct Walk {
    layers: Vec<OwnedFd>,
    mounts: BTreeSet<PathBuf>,
    changes: Vec<Change>,
}

impl Walk {
    /// Reports what is in a directory of the upper layer, and whether there was anything to report.
    fn directory(&mut self, upper: &OwnedFd, path: &Path, shown: Shown, depth: usize) -> Result<bool> {
        if depth >= MAX_DEPTH {
            let path = path.display();
            return Err(Error::Invalid(format!("/{path} lies {MAX_DEPTH} directories deep, too deep to compare")));
        }
        let attempt = || format!("read {} of the container", Path::new("/").join(path).display());
        let before = self.changes.len();
        let shown = if shown == Shown::Merged && is_opaque(upper) { Shown::Replaced } else { shown };
        let mut present = BTreeSet::new();
        for name in names(upper).attempt(attempt)? {
            let stat = match statat(upper, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other.attempt(attempt)?,
            };
            let child = path.join(&name);
            let below = if shown == Shown::New { None } else { self.below(&child) };
            if is_whiteout(&stat) {
                if below.is_some() {
                    self.report(&child, Kind::Deleted);
                }
            } else {
                let entry = Entry { name: &name, path: &child, stat, below };
                self.entry(upper, &entry, shown, depth)?;
            }
            present.insert(name);
        }
        if shown == Shown::Replaced {
            for name in self.names_below(path).attempt(attempt)? {
                if !present.contains(&name) {
                    self.report(&path.join(name), Kind::Deleted);
                }
            }
        }
        Ok(self.changes.len() > before)
    }

    /// Reports one entry of the upper layer.
    fn entry(&mut self, parent: &OwnedFd, entry: &Entry, parent_shown: Shown, depth: usize) -> Result<()> {
        let Entry { name, path, stat, below } = entry;
        let attempt = || format!("open /{} of the container", path.display());
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let was_dir = below.is_some_and(|below| FileType::from_raw_mode(below.st_mode) == FileType::Directory);
        let is_mounted = self.mounts.contains(&Path::new("/").join(path));
        if !is_dir {
            if !is_mounted {
                self.report(path, if below.is_some() { Kind::Changed } else { Kind::Added });
            }
            return Ok(());
        }
        let open = match openat(parent, *name, DIRECTORY, Mode::empty()) {
            // Replaced since it was listed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other.attempt(attempt)?,
        };
        let place = self.changes.len();
        let shown = if was_dir { parent_shown } else { Shown::New };
        let inside = self.directory(&open, path, shown, depth + 1)?;
        let holds_mount = || {
            let path = Path::new("/").join(path);
            self.mounts.iter().any(|mount| mount.starts_with(&path))
        };
        let kind = match below {
            Some(below) if was_dir => {
                let same = (below.st_mode, below.st_uid, below.st_gid) == (stat.st_mode, stat.st_uid, stat.st_gid);
                (inside || !same).then_some(Kind::Changed)
            }
            Some(_) => Some(Kind::Changed),
            // Made to mount something on it, or in it.
            None => (inside || !holds_mount()).then_some(Kind::Added),
        };
        if let Some(kind) = kind.filter(|_| !is_mounted) {
            self.changes.insert(place, Change { path: Path::new("/").join(path), kind });
        }
        Ok(())
    }

    fn report(&mut self, path: &Path, kind: Kind) {
        self.changes.push(Change { path: Path::new("/").join(path), kind });
    }

    /// What the image has at a path, seen through all its layers.
    fn below(&self, path: &Path) -> Option<Stat> {
        for layer in &self.layers {
            match look(layer, path) {
                Seen::Yes(stat) => return Some(stat),
                Seen::No => {}
                Seen::Hidden => return None,
            }
        }
        None
    }

    /// The names the image has in a directory, seen through all its layers.
    fn names_below(&self, path: &Path) -> rustix::io::Result<BTreeSet<OsString>> {
        let mut all = BTreeSet::new();
        for layer in &self.layers {
            let Ok(dir) = open_below(layer, path, DIRECTORY) else {
                continue;
            };
            all.extend(names(&dir)?);
        }
        // A name may be a whiteout, or hidden by a layer above.
        all.retain(|name| self.below(&path.join(name)).is_some());
        Ok(all)
    }
}

/// What one layer says of a path.
enum Seen {
    /// It is there.
    Yes(Stat),
    /// Nothing: ask the layer below.
    No,
    /// Nothing, and no layer below is asked.
    Hidden,
}

fn look(layer: &OwnedFd, path: &Path) -> Seen {
    let mut so_far = PathBuf::new();
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        so_far.push(component);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(stat) = open_below(layer, &so_far, flags).and_then(|fd| rustix::fs::fstat(&fd)) else {
            return Seen::No;
        };
        if is_whiteout(&stat) {
            return Seen::Hidden;
        }
        if components.peek().is_none() {
            return Seen::Yes(stat);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Seen::Hidden;
        }
        if open_below(layer, &so_far, DIRECTORY).is_ok_and(|dir| is_opaque(&dir)) && !exists_in(layer, path) {
            return Seen::Hidden;
        }
    }
    Seen::No
}

fn exists_in(layer: &OwnedFd, path: &Path) -> bool {
    open_below(layer, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).is_ok()
}

/// Opens a path of a layer; no part of it may be a symlink.
fn open_below(layer: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(layer, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// A character device 0/0 stands for a file that was deleted.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// An opaque directory hides what the layers below have in it.
fn is_opaque(dir: &OwnedFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0; 2];
        fgetxattr(dir, *name, &mut value).is_ok_and(|length| &value[..length] == b"y")
    })
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let own = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names =
        Dir::new(own)?.map(|entry| entry.map(|entry| OsString::from_vec(entry.file_name().to_bytes().to_vec())));
    let mut names = names.collect::<rustix::io::Result<Vec<_>>>()?;
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{XattrFlags, makedev, mknodat, setxattr};

    use super::*;

    struct Layers(tempfile::TempDir);

    impl Layers {
        fn path(&self, path: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn file(&self, path: &str) {
            fs::write(self.path(path), path).unwrap();
        }

        fn whiteout(&self, path: &str) {
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, self.path(path), FileType::CharacterDevice, mode, makedev(0, 0)).unwrap();
        }

        fn opaque(&self, path: &str) {
            fs::create_dir_all(self.path(path)).unwrap();
            setxattr(self.path(path), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        }

        fn diff(&self, mounts: &[&str]) -> Vec<String> {
            for layer in ["upper", "top", "bottom"] {
                fs::create_dir_all(self.0.path().join(layer)).unwrap();
            }
            let layers = [self.path("top"), self.path("bottom")];
            let mounts = mounts.iter().map(PathBuf::from).collect();
            let changes = compare(&self.path("upper"), &layers, mounts).unwrap();
            changes.iter().map(|change| format!("{} {}", change.kind.letter(), change.path.display())).collect()
        }
    }

    fn layers() -> Layers {
        Layers(tempfile::tempdir().unwrap())
    }

    #[test]
    fn an_untouched_container_has_changed_nothing() {
        let layers = layers();
        layers.file("bottom/etc/passwd");
        assert!(layers.diff(&[]).is_empty());
    }

    #[test]
    fn files_are_added_changed_and_deleted() {
        let layers = layers();
        layers.file("bottom/etc/passwd");
        layers.file("bottom/etc/group");
        layers.file("top/srv/page");
        layers.file("upper/etc/passwd");
        layers.whiteout("upper/etc/group");
        layers.whiteout("upper/srv/page");
        layers.file("upper/new/deep/file");
        symlink("/etc/shadow", layers.path("upper/link")).unwrap();
        let expected = [
            "C /etc",
            "D /etc/group",
            "C /etc/passwd",
            "A /link",
            "A /new",
            "A /new/deep",
            "A /new/deep/file",
            "C /srv",
            "D /srv/page",
        ];
        assert_eq!(layers.diff(&[]), expected);
    }

    #[test]
    fn a_whiteout_in_a_layer_makes_a_file_new() {
        let layers = layers();
        layers.file("bottom/etc/passwd");
        layers.whiteout("top/etc/passwd");
        layers.file("upper/etc/passwd");
        assert_eq!(layers.diff(&[]), ["C /etc", "A /etc/passwd"]);
    }

    #[test]
    fn an_opaque_directory_deletes_what_it_hides() {
        let layers = layers();
        layers.file("bottom/data/a");
        layers.file("bottom/data/b");
        layers.file("top/data/c");
        layers.opaque("upper/data");
        layers.file("upper/data/b");
        layers.file("upper/data/d");
        let changes = layers.diff(&[]);
        assert_eq!(changes, ["C /data", "D /data/a", "C /data/b", "D /data/c", "A /data/d"]);
    }

    #[test]
    fn an_opaque_directory_in_a_layer_hides_the_layers_below() {
        let layers = layers();
        layers.file("bottom/data/a");
        layers.opaque("top/data");
        layers.file("upper/data/a");
        assert_eq!(layers.diff(&[]), ["C /data", "A /data/a"]);
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_a_change() {
        let layers = layers();
        layers.file("bottom/thing");
        layers.file("upper/thing/inside");
        assert_eq!(layers.diff(&[]), ["C /thing", "A /thing/inside"]);
    }

    #[test]
    fn what_is_mounted_on_is_not_shown() {
        let layers = layers();
        layers.file("bottom/etc/passwd");
        layers.file("upper/etc/hosts");
        fs::create_dir_all(layers.path("upper/proc")).unwrap();
        fs::create_dir_all(layers.path("upper/mnt/data")).unwrap();
        assert!(layers.diff(&["/etc/hosts", "/proc", "/mnt/data"]).is_empty());
    }
}
