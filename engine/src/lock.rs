//! The lock of one container: whoever holds it looks after whatever of the container is alive.
//!
//! `STATE/containers/<id>/lock` is made and locked before anything else of a container is made. The lock belongs to
//! the open file description (`flock(2)`), so it passes from `berth` to the monitor by inheritance and is
//! free again the moment its last holder is gone, however it went. A free lock in an existing directory therefore
//! means a crash, and [`crate::sweep`] cleans up after it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Attempt as _, Error, Result};
use crate::id::short;
use crate::paths::{PRIVATE, Roots, make_dir};

/// How long a command waits for another command that works on the same container.
const PATIENCE: Duration = Duration::from_secs(10);

/// A held lock. Dropping it frees it unless a monitor has inherited it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, making the volatile directory where it is missing; `None`: somebody else has it.
    pub fn try_take(roots: &Roots, id: &str) -> Result<Option<Self>> {
        let path = roots.live_container(id).join("lock");
        let attempt = || format!("lock {}", path.display());
        loop {
            let file =
                match OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        make_dir(&roots.live_container(id), PRIVATE)?;
                        continue;
                    }
                    Err(error) => return Err(error).attempt(attempt),
                };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                other => other.attempt(attempt)?,
            }
            // Its last holder may have removed the file between our opening and locking it.
            if file.metadata().attempt(attempt)?.nlink() > 0 {
                return Ok(Some(Self { file }));
            }
        }
    }

    /// Takes the lock of a container that nobody should be looking after, waiting a little for another command (a
    /// sweep, a removal) to be done with it. `None`: its monitor has it.
    pub fn take(roots: &Roots, id: &str) -> Result<Option<Self>> {
        let begin = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(roots, id)? {
                return Ok(Some(lock));
            }
            if monitored(roots, id) {
                return Ok(None);
            }
            if begin.elapsed() > PATIENCE {
                return Err(busy(short(id), "in use by another berth command", "try again when that has ended"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Removes the volatile directory and frees the lock: nothing of the container is alive.
    pub fn retire(self, roots: &Roots, id: &str) -> Result<()> {
        let dir = roots.live_container(id);
        // The lock goes last, so that a crash here leaves something a sweep will find.
        if let Ok(entries) = fs::read_dir(&dir) {
            for entry in entries.flatten().filter(|entry| entry.file_name() != "lock") {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::remove_file(dir.join("lock"));
        match fs::remove_dir(&dir) {
            // Somebody was faster to begin something new here, or to clean up.
            Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                Err(error).attempt(|| format!("remove {}", dir.display()))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether somebody holds the container's lock: it is being made, looked after or removed.
pub fn is_held(roots: &Roots, id: &str) -> bool {
    let Ok(file) = File::open(roots.live_container(id).join("lock")) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Whether the lock's holder is a monitor that has said so in `status.json`.
fn monitored(roots: &Roots, id: &str) -> bool {
    let status = crate::status::read(roots, id);
    status.is_ok_and(|status| status.monitor_pid.is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)))
}

/// The error for a lock that somebody else holds.
pub(crate) fn busy(name: &str, state: &'static str, advice: &str) -> Error {
    Error::WrongState { name: name.to_owned(), state, advice: advice.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_exclusive_until_it_is_retired() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(&dir.path().join("data"), &dir.path().join("state")).unwrap();
        assert!(!is_held(&roots, "a"));
        let lock = Lock::try_take(&roots, "a").unwrap().unwrap();
        assert!(is_held(&roots, "a"));
        assert!(Lock::try_take(&roots, "a").unwrap().is_none());
        lock.retire(&roots, "a").unwrap();
        assert!(!roots.live_container("a").exists());
        assert!(Lock::try_take(&roots, "a").unwrap().is_some());
    }

    #[test]
    fn a_dropped_lock_is_free_and_stays_findable() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), dir.path()).unwrap();
        drop(Lock::try_take(&roots, "a").unwrap());
        assert!(!is_held(&roots, "a"));
        assert!(roots.live_container("a").join("lock").exists());
    }
}
