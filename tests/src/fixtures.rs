//! Real images, made on the spot from the distribution's packages and kept in the target directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

use crate::binaries;

/// A root filesystem with a static busybox, as a tar file.
pub fn busybox_rootfs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| made_by("busybox.tar", "busybox-rootfs", &[]))
}

/// An OCI image layout, written by umoci, with the tag `latest`: a Debian system in several layers with
/// Python 3 and removed files.
pub fn debian_layout() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| made_by("debian", "debian-image", &["latest", "python3-minimal libpython3-stdlib"]))
}

/// A program for WASI preview 1; `scripts/wasm-program` says what it does.
pub fn wasm_program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| made_by("program.wasm", "wasm-program", &[]))
}

/// `SQLite` as a program for WASI preview 1; `scripts/wasm-sqlite` says how it is used.
pub fn wasm_sqlite() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| made_by("sqlite.wasm", "wasm-sqlite", &[]))
}

/// A component written in Python, see `scripts/wasm-python`; none where what makes it cannot be had.
pub fn wasm_python() -> Option<&'static Path> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| try_made_by("python.wasm", "wasm-python", &[])).as_deref()
}

/// An OCI image layout with the tag `latest`: the tools that people run, and Python's own tests.
pub fn tools_layout() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let packages = "python3 sqlite3 perl git gawk xz-utils";
    PATH.get_or_init(|| made_by("tools", "debian-image", &["latest", packages, "libpython3.[0-9]+-testsuite"]))
}

/// What a script ends with that lacks what it makes the fixture of (`EX_UNAVAILABLE` of sysexits.h).
const UNAVAILABLE: i32 = 69;

fn made_by(name: &str, script: &str, args: &[&str]) -> PathBuf {
    let made = try_made_by(name, script, args);
    made.unwrap_or_else(|| panic!("{script} lacks something: does scripts/setup test say that all is there?"))
}

/// The fixture `name`, made by `scripts/SCRIPT PATH ARGS…` unless it is there and newer than the script; or the one
/// in the folder named by `BERTH_FIXTURES_DIR`, as it is. None where the script says that what it takes cannot be had.
fn try_made_by(name: &str, script: &str, args: &[&str]) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("BERTH_FIXTURES_DIR") {
        return Some(PathBuf::from(dir).join(name)).filter(|path| path.exists());
    }
    let dir = binaries::fixtures_dir();
    fs::create_dir_all(&dir).expect("a folder for fixtures in the target directory");
    let lock = File::create(dir.join(format!("{name}.lock"))).expect("a lock file in the target directory");
    // Other test processes wait here for the one that makes it.
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("flock works");

    let path = dir.join(name);
    let script = binaries::workspace().join("scripts").join(script);
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let fresh = matches!((changed(&path), changed(&script)), (Ok(made), Ok(written)) if made >= written);
    if !fresh {
        let _ = fs::remove_dir_all(&path);
        eprintln!("making the fixture {name}");
        let status = Command::new(&script).arg(&path).args(args).status().expect("the script can be started");
        if status.code() == Some(UNAVAILABLE) {
            return None;
        }
        assert!(status.success(), "{} failed: does scripts/setup test say that all is there?", script.display());
    }
    Some(path)
}
