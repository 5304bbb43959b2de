//! Locks between processes: `flock(2)`, which the kernel releases when a process dies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

impl Guard {
    pub(super) fn shared(path: &Path) -> Result<Self> {
        Self::lock(path, FlockOperation::LockShared)
    }

    pub(super) fn exclusive(path: &Path) -> Result<Self> {
        Self::lock(path, FlockOperation::LockExclusive)
    }

    fn lock(path: &Path, operation: FlockOperation) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("open", path))?;
        rustix::io::retry_on_intr(|| flock(&file, operation)).map_err(Error::io("lock", path))?;
        Ok(Self { _file: file })
    }
}
