//! What Linux guests boot with: unpacked kernels, and initramfs files for each kernel and build, which `berth-vmm initramfs` makes
//! and keeps in the data root. Those that nobody needs any more are removed when a new one is made.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use berth_runtime::executor::{self, Executor};

use crate::document;
use crate::error::{Attempt as _, Result};
use crate::microvm::{INITRAMFS, KERNEL};
use crate::names;
use crate::paths::Roots;

/// A container names its file only when it has been made, which may include fetching its image: until then the file's time keeps
/// it, which is that of its last use.
const KEPT: Duration = Duration::from_hours(24);

/// Removes the files that no container boots with and that were not used for a day.
pub(crate) fn prune(roots: &Roots) -> Result<()> {
    let needed = needed(roots)?;
    let dir = roots.guests();
    let attempt = || format!("list {}", dir.display());
    for entry in fs::read_dir(&dir).attempt(attempt)? {
        let entry = entry.attempt(attempt)?;
        let path = entry.path();
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        let used = used.attempt(|| format!("examine {}", path.display()))?;
        // A time in the future is not old.
        if needed.contains(&entry.file_name()) || used.elapsed().unwrap_or_default() < KEPT {
            continue;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.attempt(|| format!("remove {}", path.display()))?,
        }
    }
    Ok(())
}

/// The names of the files that containers boot with.
fn needed(roots: &Roots) -> Result<BTreeSet<OsString>> {
    let mut needed = BTreeSet::new();
    for id in names::ids(roots)? {
        let path = roots.container(&id).join(executor::FILE);
        let executor: Option<Executor> = document::read(&path, "remove the container")?;
        let files = executor.iter().flat_map(|executor| [KERNEL, INITRAMFS].map(|name| executor.files.get(name)));
        needed.extend(files.flatten().filter_map(|file| file.path.file_name()).map(ToOwned::to_owned));
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_old_and_nobodys_goes() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(&dir.path().join("data"), &dir.path().join("state")).unwrap();
        fs::create_dir_all(roots.guests()).unwrap();
        let container = roots.container(&"a".repeat(64));
        fs::create_dir_all(&container).unwrap();
        for (name, age) in
            [("used.cpio", 30), ("used.vmlinux", 30), ("old.cpio", 30), ("new.cpio", 1), (".half.cpio.7", 30)]
        {
            let file = File::create(roots.guests().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(age)).unwrap();
        }
        let executor = json!({
            "program": "/x", "root": "empty", "settings": null, "memory_overhead": 0, "pids_overhead": 0,
            "files": {
                "initramfs": { "path": roots.guests().join("used.cpio") },
                "kernel": { "path": roots.guests().join("used.vmlinux") },
            },
        });
        let path = container.join(executor::FILE);
        fs::write(&path, "{").unwrap();
        prune(&roots).unwrap_err();
        assert_eq!(
            fs::read_dir(roots.guests()).unwrap().count(),
            5,
            "nothing goes while it is not known who needs what"
        );
        fs::write(&path, executor.to_string()).unwrap();
        prune(&roots).unwrap();
        let mut left: Vec<_> = fs::read_dir(roots.guests()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["new.cpio", "used.cpio", "used.vmlinux"]);
    }
}
