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
//! Volumes that a killed command left half made or half removed go as well.
//!
//! Looking at a container somebody cares for costs two system calls. A damaged file never stops the sweep: what
//! can be cleaned is cleaned, and the damage is reported.

use std::fs;
use std::io;

use berth_runtime::cgroup::CgroupManager;
use berth_runtime::monitor::{Phase, Status};
use berth_runtime::sandbox::Sandbox;

use crate::document;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::names;
use crate::paths::{PRIVATE, Roots, make_dir};
use crate::record::Record;
use crate::remove;
use crate::spec;
use crate::status;
use crate::volumes::Store;

/// Cleans up after crashed commands and monitors; returns what could not be cleaned.
pub fn sweep(roots: &Roots) -> Vec<Error> {
    let mut errors = Vec::from_iter(Store::new(roots.data()).sweep().err().map(Error::from));
    if roots.data().join("images").exists() {
        let swept = berth_images::Store::open(roots.data()).and_then(|images| images.sweep());
        errors.extend(swept.err().map(Error::from));
    }
    if !roots.live().exists() {
        // The first command after a reboot: what was alive is not, and what was half made or half removed then
        // has lost its lock too.
        errors.extend(sweep_data(roots));
        if roots.containers().exists() {
            // Once is enough; whoever may not make it can do nothing else either.
            let _ = make_dir(&roots.live(), PRIVATE);
        }
        return errors;
    }
    let ids = match names::directory_ids(&roots.live()) {
        Ok(ids) => ids,
        Err(error) => {
            errors.push(error);
            return errors;
        }
    };
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
    removed && status::read(roots, id).is_ok_and(|status| status.phase != Phase::Created)
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
        Ok(Some(record)) if record.options.remove => {
            errors.extend(remove::remove_record(roots, &record, true).err());
        }
        // A damaged record stays for a person to look at; its container is not alive.
        Ok(Some(_)) | Err(_) => errors.extend(correct_status(roots, id).err()),
    }
    errors.extend(lock.retire(roots, id).err());
    errors
}

/// Kills and deletes what is left of the container's sandbox.
pub(crate) fn delete_sandbox(roots: &Roots, id: &str) -> Result<()> {
    let dir = roots.sandboxes().join(id);
    if let Ok(sandbox) = Sandbox::load(&roots.sandboxes(), id) {
        return Ok(sandbox.delete(true)?);
    }
    // A state that is damaged or lost: what it would say of the control group is known here too.
    let cgroup = CgroupManager::new(&spec::cgroups_path(id)).map_err(berth_runtime::error::Error::from)?;
    if cgroup.exists() {
        cgroup.kill_all().and_then(|()| cgroup.delete()).map_err(berth_runtime::error::Error::from)?;
    }
    remove_path(&dir)
}

/// A status that claims life, or that cannot be read, becomes `exited`.
fn correct_status(roots: &Roots, id: &str) -> Result<()> {
    let status = match status::read(roots, id) {
        Ok(status) if matches!(status.phase, Phase::Created | Phase::Exited) => return Ok(()),
        Ok(status) => status::lost(&status),
        Err(Error::Damaged { .. }) => status::lost(&Status::default()),
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::container::Container;
    use crate::options::Options;

    struct Host {
        _dir: tempfile::TempDir,
        roots: Roots,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let roots = Roots::new(&dir.path().join("data"), &dir.path().join("state")).unwrap();
            Self { _dir: dir, roots }
        }

        fn id(digit: char) -> String {
            digit.to_string().repeat(64)
        }

        /// A container as `create` leaves it, with a name.
        fn container(&self, digit: char, remove: bool) -> Record {
            let id = Self::id(digit);
            let record = Record {
                id: id.clone(),
                name: format!("name-{digit}"),
                created_at: jiff::Timestamp::now(),
                image: "busybox".to_owned(),
                image_digest: String::new(),
                image_id: String::new(),
                lower_dirs: Vec::new(),
                args: Vec::new(),
                anonymous_volumes: Vec::new(),
                options: Options { remove, ..Options::default() },
            };
            fs::create_dir_all(self.roots.container(&id).join("upper/deep")).unwrap();
            names::claim(&self.roots, &record.name, &id).unwrap();
            record.write(&self.roots).unwrap();
            record
        }

        fn status(&self, digit: char, phase: Phase) {
            let status = Status { phase, pid: Some(1), monitor_pid: Some(1), ..Status::default() };
            document::write(&self.roots.container(&Self::id(digit)).join("status.json"), &status).unwrap();
        }

        /// The volatile directory, as a process leaves it that was killed.
        fn orphan(&self, digit: char) {
            drop(Lock::try_take(&self.roots, &Self::id(digit)).unwrap());
        }

        fn sweep(&self) -> Vec<String> {
            sweep(&self.roots).iter().map(ToString::to_string).collect()
        }

        fn left(&self) -> Vec<String> {
            let mut left = Vec::new();
            for dir in [self.roots.containers(), self.roots.names(), self.roots.live()] {
                left.extend(
                    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()),
                );
            }
            left
        }
    }

    #[test]
    fn nothing_is_nothing() {
        let host = Host::new();
        assert!(host.sweep().is_empty());
        assert!(host.left().is_empty());
    }

    #[test]
    fn a_half_made_container_goes_with_its_name() {
        let host = Host::new();
        let id = Host::id('a');
        host.orphan('a');
        fs::create_dir_all(host.roots.container(&id).join("upper")).unwrap();
        fs::write(host.roots.container(&id).join("config.json"), "{").unwrap();
        names::claim(&host.roots, "half", &id).unwrap();
        assert!(host.sweep().is_empty());
        assert!(host.left().is_empty(), "{:?}", host.left());
    }

    #[test]
    fn a_lock_alone_goes() {
        let host = Host::new();
        host.orphan('a');
        fs::create_dir_all(host.roots.live_container(&Host::id('b'))).unwrap();
        assert!(host.sweep().is_empty());
        assert!(host.left().is_empty(), "{:?}", host.left());
    }

    #[test]
    fn what_somebody_looks_after_is_left_alone() {
        let host = Host::new();
        let lock = Lock::try_take(&host.roots, &Host::id('a')).unwrap();
        fs::create_dir_all(host.roots.container(&Host::id('a'))).unwrap();
        assert!(host.sweep().is_empty());
        assert!(host.roots.container(&Host::id('a')).exists());
        assert!(sweep_data(&host.roots).is_empty());
        assert!(host.roots.container(&Host::id('a')).exists());
        drop(lock);
    }

    #[test]
    fn a_container_whose_monitor_died_has_exited() {
        let host = Host::new();
        host.container('a', false);
        host.status('a', Phase::Running);
        host.orphan('a');
        assert!(host.sweep().is_empty());
        let container = Container::find(&host.roots, "name-a").unwrap();
        let status = container.status().unwrap();
        assert_eq!((status.phase, status.exit_code, status.pid), (Phase::Exited, Some(137), None));
        assert!(status.error.is_some());
        assert!(!container.live_dir().exists());
    }

    #[test]
    fn a_finished_container_is_kept_as_it_is() {
        let host = Host::new();
        host.container('a', false);
        host.status('a', Phase::Exited);
        host.orphan('a');
        assert!(host.sweep().is_empty());
        assert_eq!(Container::find(&host.roots, "name-a").unwrap().status().unwrap().exit_code, None);
    }

    #[test]
    fn a_container_to_be_removed_is_removed() {
        let host = Host::new();
        for (digit, phase) in [('a', Phase::Running), ('b', Phase::Exited)] {
            host.container(digit, true);
            host.status(digit, phase);
            host.orphan(digit);
        }
        assert!(host.sweep().is_empty());
        assert!(host.left().is_empty(), "{:?}", host.left());
    }

    #[test]
    fn a_removal_cut_short_is_finished() {
        let host = Host::new();
        let record = host.container('a', false);
        let dir = host.roots.container(&record.id);
        fs::rename(dir.join("container.json"), dir.join("removed.json")).unwrap();
        host.orphan('a');
        assert!(host.sweep().is_empty());
        assert!(host.left().is_empty(), "{:?}", host.left());
    }

    #[test]
    fn damaged_files_are_no_obstacle() {
        let host = Host::new();
        for (digit, file) in [('a', "container.json"), ('b', "status.json")] {
            host.container(digit, false);
            fs::write(host.roots.container(&Host::id(digit)).join(file), "{\"id\":").unwrap();
            host.orphan(digit);
        }
        host.orphan('c');
        assert!(host.sweep().is_empty());
        assert!(!host.roots.live_container(&Host::id('c')).exists());
        let error = Container::find(&host.roots, "name-a").unwrap_err().to_string();
        assert!(error.contains("container.json") && error.contains("berth rm -f"), "{error}");
        let status = Container::find(&host.roots, "name-b").unwrap().status().unwrap();
        assert_eq!((status.phase, status.exit_code), (Phase::Exited, Some(137)));
        remove::remove(&host.roots, "name-a", false, false).unwrap_err();
        remove::remove(&host.roots, "name-a", true, false).unwrap();
        assert!(!host.roots.container(&Host::id('a')).exists());
        assert!(names::holder(&host.roots, "name-a").is_none());
    }

    #[test]
    fn a_sandbox_with_a_damaged_state_goes() {
        let host = Host::new();
        host.container('a', false);
        host.status('a', Phase::Running);
        host.orphan('a');
        let sandbox = host.roots.sandboxes().join(Host::id('a'));
        fs::create_dir_all(&sandbox).unwrap();
        fs::write(sandbox.join("state.json"), "{").unwrap();
        assert_eq!(host.sweep(), [""; 0]);
        assert!(!sandbox.exists());
        assert_eq!(Container::find(&host.roots, "name-a").unwrap().status().unwrap().phase, Phase::Exited);
    }

    #[test]
    fn after_a_reboot_everything_is_looked_at() {
        let host = Host::new();
        host.container('a', false);
        host.status('a', Phase::Running);
        host.container('b', true);
        host.status('b', Phase::Running);
        fs::create_dir_all(host.roots.container(&Host::id('c'))).unwrap();
        names::claim(&host.roots, "dangling", &Host::id('d')).unwrap();
        assert!(host.sweep().is_empty());
        let container = Container::find(&host.roots, "name-a").unwrap();
        assert_eq!(container.status().unwrap().exit_code, Some(137));
        assert!(!host.roots.container(&Host::id('b')).exists());
        assert!(!host.roots.container(&Host::id('c')).exists());
        assert!(names::holder(&host.roots, "dangling").is_none());
    }
}
