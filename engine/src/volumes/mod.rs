//! Volumes: directories that outlive containers, `DATA/volumes/<name>/_data`, each with a `volume.json` beside it.
//!
//! A volume is made under a hidden name and renamed, and renamed away before it is removed, so it is whole or not there.
//! Who makes a container with a volume holds a shared flock(2) on the volume's directory until the container's record
//! is written; who fills or removes the volume holds it alone. The same lock on `DATA/volumes` tells debris from work
//! under way. Start reading at [`Store`].

mod copy;
mod error;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};

use crate::paths::PRIVATE;
pub use error::Error;
pub use resolve::{Resolved, ResolvedMount, ResolvedSource};

const META: &str = "volume.json";
const DATA: &str = "_data";
const NEW: &str = ".new-";
const OLD: &str = ".old-";
/// Bounds what is read of a `volume.json`, bytes.
const MAX_META: u64 = 1 << 20;

/// The volumes below one data root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// The container it was made for and goes with; `None` for a named volume.
    pub container: Option<String>,
    /// Whether a container has had it: only before that it is filled from an image.
    pub used: bool,
    /// Its contents on the host.
    #[serde(default)]
    pub mountpoint: PathBuf,
}

/// What became of the wish to remove a volume.
enum Removal {
    Done,
    Missing,
    /// By these containers.
    InUse(Vec<String>),
}

/// Checks a volume's name: docker's syntax.
pub fn check_name(name: &str) -> Result<(), Error> {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    if (2..=255).contains(&bytes.len()) && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(inner) {
        Ok(())
    } else {
        Err(Error::Name { name: name.chars().take(300).collect() })
    }
}

impl Store {
    /// The volumes of a data root; nothing is made before the first volume.
    pub fn new(data_root: &Path) -> Self {
        Self { root: data_root.join("volumes") }
    }

    /// The volume's directory, for a monitor to remove with its container.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a volume; one that is there already is left as it is. `None`: under a random name.
    pub fn create(&self, name: Option<&str>, labels: BTreeMap<String, String>) -> Result<Volume, Error> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => random_name()?,
        };
        self.make(&name, labels, None)?;
        self.get(&name)
    }

    /// One volume.
    pub fn get(&self, name: &str) -> Result<Volume, Error> {
        check_name(name)?;
        self.read(name)?.ok_or_else(|| Error::NotFound { name: name.to_owned() })
    }

    /// All volumes by name.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        self.read_all().into_iter().collect()
    }

    /// All volumes by name, but those whose record cannot be read.
    fn readable(&self) -> Vec<Volume> {
        self.read_all().into_iter().filter_map(Result::ok).collect()
    }

    fn read_all(&self) -> Vec<Result<Volume, Error>> {
        let mut names = match self.entries() {
            Ok(names) => names,
            Err(error) => return vec![Err(error)],
        };
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        names.iter().filter_map(|name| self.read(name).transpose()).collect()
    }

    /// Removes a volume with its contents. `users` tells which containers have it.
    pub fn remove<E: From<Error>>(
        &self,
        name: &str,
        users: impl FnOnce(&str) -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        match self.remove_unused(name, users)? {
            Removal::Done => Ok(()),
            Removal::Missing => Err(Error::NotFound { name: name.to_owned() }.into()),
            Removal::InUse(users) => Err(Error::InUse { name: name.to_owned(), users }.into()),
        }
    }

    /// Removes the volumes that no container has: anonymous ones, and with `all` named ones too. Returns what went.
    pub fn prune<E: From<Error>>(
        &self,
        all: bool,
        users: impl Fn(&str) -> Result<Vec<String>, E>,
    ) -> Result<Vec<Volume>, E> {
        self.sweep()?;
        let mut gone = Vec::new();
        for volume in self.readable() {
            let wanted = all || volume.container.is_some();
            if wanted && matches!(self.remove_unused(&volume.name, &users)?, Removal::Done) {
                gone.push(volume);
            }
        }
        Ok(gone)
    }

    /// Removes the anonymous volumes of a container that is gone, or was never finished.
    pub fn remove_of_container(&self, id: &str) -> Result<(), Error> {
        for volume in self.readable() {
            if volume.container.as_deref() == Some(id) {
                self.remove_unused(&volume.name, |_| Ok::<_, Error>(Vec::new()))?;
            }
        }
        Ok(())
    }

    fn remove_unused<E: From<Error>>(
        &self,
        name: &str,
        users: impl FnOnce(&str) -> Result<Vec<String>, E>,
    ) -> Result<Removal, E> {
        check_name(name)?;
        let path = self.path(name);
        let Some(dir) = open_dir(&path)? else {
            return Ok(Removal::Missing);
        };
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Removal::InUse(vec![String::from("a container that is being made")]));
            }
            Err(error) => return Err(Error::io("lock", &path)(error).into()),
        }
        let users = users(name)?;
        if !users.is_empty() {
            return Ok(Removal::InUse(users));
        }
        let _working = self.lock(FlockOperation::LockShared)?;
        let old = self.root.join(format!("{OLD}{}", random_name()?));
        match fs::rename(&path, &old) {
            Ok(()) => fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removal::Missing),
            Err(error) => return Err(Error::io("remove", &path)(error).into()),
        }
        Ok(Removal::Done)
    }

    /// Removes what killed commands left behind, unless some command is at work on volumes.
    pub fn sweep(&self) -> Result<(), Error> {
        let debris: Vec<String> = self.entries()?.into_iter().filter(|name| is_debris(&self.root, name)).collect();
        if debris.is_empty() {
            return Ok(());
        }
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Ok(_alone) => debris.iter().try_for_each(|name| {
                let path = self.root.join(name);
                match fs::remove_dir_all(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
                    _ => Ok(()),
                }
            }),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a volume under a hidden name and renames it; one that is there already is left as it is.
    fn make(&self, name: &str, labels: BTreeMap<String, String>, container: Option<&str>) -> Result<(), Error> {
        check_name(name)?;
        // A volume may hold programs that are setuid to the host's root: they are for containers alone.
        let made = fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(&self.root);
        made.map_err(Error::io("make", &self.root))?;
        let _working = self.lock(FlockOperation::LockShared)?;
        if self.path(name).exists() {
            return Ok(());
        }
        let new = self.root.join(format!("{NEW}{}", random_name()?));
        fs::create_dir_all(new.join(DATA)).map_err(Error::io("make", &new))?;
        let volume = Volume {
            name: name.to_owned(),
            created_at: Timestamp::now(),
            labels,
            container: container.map(str::to_owned),
            used: false,
            mountpoint: PathBuf::new(),
        };
        write_meta(&new, &volume)?;
        match renameat_with(CWD, &new, CWD, self.path(name), RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => fs::remove_dir_all(&new).map_err(Error::io("remove", &new)),
            Err(error) => Err(Error::io("make", &self.path(name))(error)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Volume>, Error> {
        let path = self.path(name).join(META);
        let failed = |source: io::Error| Error::io("read", &path)(source);
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
            Ok(file) => file.take(MAX_META).read_to_string(&mut text).map_err(failed)?,
        };
        let mut volume: Volume = serde_json::from_str(&text).map_err(|source| Error::Broken {
            name: name.to_owned(),
            path: path.clone(),
            source,
        })?;
        name.clone_into(&mut volume.name);
        volume.mountpoint = self.path(name).join(DATA);
        Ok(Some(volume))
    }

    fn entries(&self) -> Result<Vec<String>, Error> {
        let failed = |error: io::Error| Error::io("list", &self.root)(error);
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
            Ok(entries) => entries
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(failed))
                .collect(),
        }
    }

    /// Locks the store as a whole until the file is closed.
    fn lock(&self, how: FlockOperation) -> Result<File, Error> {
        let dir = File::open(&self.root).map_err(Error::io("open", &self.root))?;
        flock(&dir, how).map_err(Error::io("lock", &self.root))?;
        Ok(dir)
    }
}

/// Hidden directories, and anonymous volumes whose removal was cut short after their `volume.json` had gone.
fn is_debris(root: &Path, name: &str) -> bool {
    let anonymous = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.starts_with(NEW) || name.starts_with(OLD) || (anonymous && !root.join(name).join(META).exists())
}

/// Writes `volume.json` by rename.
fn write_meta(dir: &Path, volume: &Volume) -> Result<(), Error> {
    let temporary = dir.join(format!("{META}.new"));
    let failed = |error: io::Error| Error::io("write", &temporary)(error);
    let text = serde_json::to_vec_pretty(volume).map_err(|error| failed(error.into()))?;
    let mut file = File::create(&temporary).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, dir.join(META)).map_err(failed)
}

/// Opens a directory, `None` where there is none.
fn open_dir(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// Whether `dir` is still what `path` names: it may have been removed while its lock was awaited.
fn is_current(dir: &File, path: &Path) -> Result<bool, Error> {
    let opened = dir.metadata().map_err(Error::io("look up", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look up", path)(error)),
    }
}

/// 64 hexadecimal digits of the kernel's random numbers.
fn random_name() -> Result<String, Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    Ok(bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hexadecimal).collect())
}

fn hexadecimal(digit: u8) -> char {
    char::from(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}
