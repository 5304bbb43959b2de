//! Work under way. Every entry of `ingest/` is locked by the process at work on it; one that is not was left by a
//! killed process and is swept. Unfinished downloads are in `partial/` and stay for a day, so that they can be resumed.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{MAX_DOCUMENT, Store};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::remove_all;

/// How long an unfinished download is kept.
pub const RESUMABLE: Duration = Duration::from_hours(24);
/// Marks the leases of pulls.
const LEASE: &str = ".lease";

/// A locked entry, removed on drop unless it was renamed away.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    file: OwnedFd,
}

impl Work {
    /// A new file.
    pub fn file(store: &Store) -> Result<Self> {
        Self::new_file(store, "")
    }

    fn new_file(store: &Store, suffix: &str) -> Result<Self> {
        loop {
            let path = unique(store, suffix);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(Error::io("create", &path))?;
            if let Some(work) = Self::lock(path, file.into(), FlockOperation::LockExclusive)? {
                return Ok(work);
            }
        }
    }

    /// A new empty directory.
    pub fn directory(store: &Store) -> Result<Self> {
        loop {
            if let Some(work) = Self::lock_directory(unique(store, ""))? {
                return Ok(work);
            }
        }
    }

    /// The empty directory `name`; waits for a process that is at work on it.
    pub fn named_directory(store: &Store, name: &str) -> Result<Self> {
        loop {
            if let Some(work) = Self::lock_directory(store.ingest_dir().join(name))? {
                for entry in std::fs::read_dir(&work.path).map_err(Error::io("read", &work.path))? {
                    let entry = entry.map_err(Error::io("read", &work.path))?;
                    remove_all(&work.file, entry.file_name().as_bytes()).map_err(Error::io("remove", entry.path()))?;
                }
                return Ok(work);
            }
        }
    }

    fn lock_directory(path: PathBuf) -> Result<Option<Self>> {
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("create", &path)(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(file) => Self::lock(path, file, FlockOperation::LockExclusive),
            // Its previous owner was just done with it.
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    /// Locks; `None` if the entry was removed or renamed before the lock was there.
    fn lock(path: PathBuf, file: OwnedFd, operation: FlockOperation) -> Result<Option<Self>> {
        match rustix::io::retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(Error::io("lock", &path)(error)),
        }
        let ours = rustix::fs::fstat(&file).map_err(Error::io("examine", &path))?;
        match std::fs::symlink_metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.st_dev, ours.st_ino) => Ok(Some(Self { path, file })),
            _ => {
                // Not ours to remove.
                drop(file);
                Ok(None)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The locked descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.file
    }

    /// A second handle on the file.
    pub fn open_file(&self) -> Result<File> {
        Ok(self.file.try_clone().map_err(Error::io("open", &self.path))?.into())
    }

    /// Replaces the file's content.
    pub fn write(&self, content: &[u8]) -> Result<()> {
        let mut file = self.open_file()?;
        file.write_all(content).and_then(|()| file.sync_data()).map_err(Error::io("write", &self.path))
    }

    /// Makes the entry visible as `target`, replacing what is there.
    pub fn rename(self, target: &Path) -> Result<()> {
        std::fs::rename(&self.path, target).map_err(Error::io("create", target))?;
        self.forget();
        Ok(())
    }

    /// Makes the entry visible as `target` unless that exists.
    pub fn rename_if_new(self, target: &Path) -> Result<()> {
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => self.forget(),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("create", target)(error)),
        }
        Ok(())
    }

    /// Nothing is left under the path to remove.
    fn forget(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) {
            let removed = open_directory(parent).and_then(|parent| remove_all(parent, name.as_bytes()));
            if let Err(error) = removed {
                tracing::debug!("cannot remove {}, it is swept later: {error}", self.path.display());
            }
        }
    }
}

/// An unfinished download of one blob, kept for a later try when the process fails or dies.
#[derive(Debug)]
pub struct PartialBlob {
    work: Option<Work>,
    file: File,
}

impl PartialBlob {
    /// Continues or begins the download of `digest`; waits for a process that is downloading it.
    pub fn open(store: &Store, digest: Digest) -> Result<Self> {
        let directory = store.partial_dir();
        std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let path = directory.join(digest.hex());
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(Error::io("create", &path))?;
            if let Some(work) = Work::lock(path.clone(), file.into(), FlockOperation::LockExclusive)? {
                let file = work.open_file()?;
                return Ok(Self { work: Some(work), file });
            }
        }
    }

    /// The file; its position is shared.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.work.as_ref().map(|work| work.path.clone()).unwrap_or_default()
    }

    /// Starts over.
    pub fn reset(&mut self) -> Result<()> {
        let path = self.path();
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(Error::io("truncate", path))?;
        Ok(())
    }

    /// The blob is whole and checked: makes it visible.
    pub fn publish(mut self, target: &Path) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", self.path()))?;
        match self.work.take() {
            Some(work) => work.rename(target),
            None => Ok(()),
        }
    }

    /// It is of no use: removes it.
    pub fn discard(mut self) {
        drop(self.work.take());
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|file| file.len() > 0)
            && let Some(work) = self.work.take()
        {
            work.forget();
        }
    }
}

/// What a pull is fetching; garbage collection spares it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lease {
    pub blobs: Vec<Digest>,
    pub chain_ids: Vec<Digest>,
}

impl Lease {
    /// Records the lease; it lasts as long as the result lives.
    pub fn record(&self, store: &Store) -> Result<Work> {
        let work = Work::new_file(store, LEASE)?;
        work.write(&serde_json::to_vec(self).map_err(|error| Error::invalid("a lease", error))?)?;
        Ok(work)
    }

    /// All leases of living processes.
    pub fn all(store: &Store) -> Result<Vec<Self>> {
        let directory = store.ingest_dir();
        let mut leases = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(Error::io("read", &directory))? {
            let path = entry.map_err(Error::io("read", &directory))?.path();
            if !path.as_os_str().as_bytes().ends_with(LEASE.as_bytes()) {
                continue;
            }
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let mut text = Vec::new();
            file.take(MAX_DOCUMENT).read_to_end(&mut text).map_err(Error::io("read", &path))?;
            leases.extend(serde_json::from_slice::<Self>(&text).ok());
        }
        Ok(leases)
    }
}

/// Removes what killed processes left.
pub fn sweep(store: &Store) -> Result<()> {
    sweep_directory(&store.ingest_dir(), |_| true)
}

/// Removes unfinished downloads that nobody has come back to.
pub fn sweep_partial(store: &Store, older_than: Duration) -> Result<()> {
    sweep_directory(&store.partial_dir(), |metadata| {
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
        age.unwrap_or_default() >= older_than
    })
}

fn sweep_directory(directory: &Path, unwanted: impl Fn(&std::fs::Metadata) -> bool) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("read", directory))?,
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = openat(CWD, &path, flags, Mode::empty()) else {
            continue;
        };
        if std::fs::symlink_metadata(&path).is_ok_and(|metadata| unwanted(&metadata)) {
            // Dropping what could be locked removes it.
            drop(Work::lock(path, file, FlockOperation::NonBlockingLockExclusive)?);
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A path in `ingest/` that nobody else uses.
fn unique(store: &Store, suffix: &str) -> PathBuf {
    // The standard library seeds this from the system's random numbers.
    let random = RandomState::new().build_hasher().finish();
    store.ingest_dir().join(format!("{}-{random:016x}{suffix}", std::process::id()))
}
