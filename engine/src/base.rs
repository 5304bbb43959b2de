//! The lowest layer of every container: nothing but the places that berth itself mounts on. With it no container has to
//! make them in its writable layer. The layers are mounted over this directory too, each time in a mount namespace that
//! goes with its container.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::PathBuf;

use crate::error::{Attempt as _, Result};
use crate::paths::Roots;

/// Directories, parents first; the first is the root.
const DIRECTORIES: [&str; 5] = ["", "dev", "etc", "proc", "sys"];
/// Empty files. The last thing of all that is made.
const FILES: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// The directory, made where it is missing. May be called by many processes at once, and be cut short.
pub(crate) fn layer(roots: &Roots) -> Result<PathBuf> {
    let base = roots.base();
    if base.join(FILES[FILES.len() - 1]).exists() {
        return Ok(base);
    }
    for name in DIRECTORIES {
        let path = base.join(name);
        let made = DirBuilder::new().mode(0o755).create(&path);
        unless_there(made).attempt(|| format!("create {}", path.display()))?;
    }
    for name in FILES {
        let path = base.join(name);
        let made = File::create_new(&path).and_then(|file| file.set_permissions(PermissionsExt::from_mode(0o644)));
        unless_there(made).attempt(|| format!("create {}", path.display()))?;
    }
    Ok(base)
}

fn unless_there(made: io::Result<()>) -> io::Result<()> {
    made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
}
