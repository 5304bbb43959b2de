//! Recovery after a crash: the first thing every command does.
//!
//! ```text
//! STATE/containers/<id>/lock held       somebody looks after it: leave it alone
//!                       lock free  -->  its sandbox is killed and deleted, then
//!     no container.json                 it was never whole, or is half removed: the rest goes too
//!     --rm                              it goes
//!     otherwise                         a status that claims life becomes `exited`, code 137
//! ```
//!
//! Looking at a container somebody cares for costs two system calls. A damaged file never stops the sweep: what
//! can be cleaned is cleaned, and the damage is reported.

use std::fs;
use std::io;

use berth_runtime::monitor::{Phase, Status};
use berth_runtime::sandbox::Sandbox;

use crate::container::{lost, read_status, short};
use crate::document;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::names;
use crate::paths::Roots;
use crate::record::Record;
use crate::remove;

/// Cleans up after crashed commands and monitors; returns what could not be cleaned.
pub fn sweep(roots: &Roots) -> Vec<Error> {
    if !roots.live().exists() {
        // The first command after a reboot: what was alive is not, and what was half made or half removed then
        // has lost its lock too.
        return sweep_data(roots);
    }
    let ids = match names::directory_ids(roots.live()) {
        Ok(ids) => ids,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    for id in ids {
        match Lock::try_take(roots, &id) {
            Ok(Some(lock)) => errors.extend(recover(roots, &id, lock)),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    errors
}

/// Cleans up the data root as well: directories without a record and names without a container. For
/// `berth system prune` and the first command after a reboot.
pub fn sweep_data(roots: &Roots) -> Vec<Error> {
    let mut errors = Vec::new();
    let ids = match names::ids(roots) {
        Ok(ids) => ids,
        Err(error) => return vec![error],
    };
    for id in ids {
        if roots.container(&id).join("container.json").exists() && !removed_at_exit(roots, &id) {
            continue;
        }
        match Lock::try_take(roots, &id) {
            Ok(Some(lock)) => errors.extend(recover(roots, &id, lock)),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    for (name, id) in names::all(roots) {
        if !roots.container(&id).exists() && !crate::lock::is_held(roots, &id) {
            errors.extend(names::release(roots, &name, &id).err());
        }
    }
    errors
}

/// A `--rm` container that was started and has not been removed.
fn removed_at_exit(roots: &Roots, id: &str) -> bool {
    let removed = matches!(Record::read(roots, id), Ok(Some(record)) if record.options.remove);
    removed && read_status(roots, id).is_ok_and(|status| status.phase != Phase::Created)
}

/// Cleans up one container that nobody looks after.
fn recover(roots: &Roots, id: &str, lock: Lock) -> Vec<Error> {
    let mut errors = Vec::new();
    if let Err(error) = delete_sandbox(roots, id) {
        // Something of it may be alive: keep the lock's directory, so that the next sweep tries again.
        errors.push(error);
        return errors;
    }
    match Record::read(roots, id) {
        Ok(None) => errors.extend(remove::remains(roots, id).err()),
        Ok(Some(record)) if record.options.remove => errors.extend(remove::remove_record(roots, &record, true).err()),
        // A damaged record stays for a person to look at; its container is not alive.
        Ok(Some(_)) | Err(_) => errors.extend(correct_status(roots, id).err()),
    }
    errors.extend(lock.retire(roots, id).err());
    errors
}

/// Kills and deletes what is left of the container's sandbox.
pub(crate) fn delete_sandbox(roots: &Roots, id: &str) -> Result<()> {
    let dir = roots.sandboxes().join(id);
    if !dir.exists() {
        return Ok(());
    }
    match Sandbox::load(&roots.sandboxes(), id) {
        Ok(sandbox) => Ok(sandbox.delete(true)?),
        Err(berth_runtime::error::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(Error::Damaged {
            path: dir.join("state.json"),
            reason: error.to_string(),
            advice: format!("end what is left of container {} by hand, then remove {}", short(id), dir.display()),
        }),
    }
}

/// A status that claims life, or that cannot be read, becomes `exited`.
fn correct_status(roots: &Roots, id: &str) -> Result<()> {
    let status = match read_status(roots, id) {
        Ok(status) if matches!(status.phase, Phase::Created | Phase::Exited) => return Ok(()),
        Ok(status) => lost(status),
        Err(Error::Damaged { .. }) => lost(Status::default()),
        Err(error) => return Err(error),
    };
    document::write(&roots.container(id).join("status.json"), &status)
}

/// Removes a file or a directory with all it holds; fine if it is gone.
pub(crate) fn remove_path(path: &std::path::Path) -> Result<()> {
    use crate::error::Attempt as _;
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
