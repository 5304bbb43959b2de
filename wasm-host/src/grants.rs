//! What a module gets of its sandbox: arguments, environment, standard streams, directories, and sockets where the sandbox has a
//! network. Nothing that was not asked for.

use std::path::Path;

use oci_spec::runtime::{Mount, Process, Root, Spec};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::error::{Error, Result};
use crate::settings::{Directory, Settings};

/// The name under which a module finds its working directory.
const HERE: &str = ".";

/// What the process in `spec` gets, with the settings.
pub fn builder(spec: &Spec, process: &Process, settings: &Settings) -> Result<WasiCtxBuilder> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.inherit_stdio();
    // The process is the module's alone: who waits for a file need not let others go first.
    wasi.allow_blocking_current_thread(true);
    wasi.args(process.args().as_deref().unwrap_or_default());
    for entry in process.env().iter().flatten() {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        wasi.env(key, value);
    }
    if settings.network {
        wasi.inherit_network().allow_tcp(true).allow_udp(true);
    }
    let directories = match &settings.directories {
        Some(directories) => directories.clone(),
        None => vec![root(spec)],
    };
    for Directory { path, read_only } in &directories {
        open(&mut wasi, path, &path.to_string_lossy(), *read_only)?;
    }
    let cwd = process.cwd();
    let within = directories
        .iter()
        .filter(|directory| cwd.starts_with(&directory.path))
        .max_by_key(|directory| directory.path.as_os_str().len());
    if let Some(directory) = within {
        wasi.initial_cwd(cwd.to_string_lossy());
        open(&mut wasi, cwd, HERE, directory.read_only)?;
    }
    Ok(wasi)
}

/// All of the sandbox's files.
fn root(spec: &Spec) -> Directory {
    let read_only = spec.root().as_ref().and_then(Root::readonly).unwrap_or(false);
    // What is mounted below it may be written even so; the kernel says what.
    let all_read_only =
        read_only && spec.mounts().as_deref().unwrap_or_default().iter().all(|mount| !is_writable(mount));
    Directory { path: "/".into(), read_only: all_read_only }
}

fn is_writable(mount: &Mount) -> bool {
    !mount.options().iter().flatten().any(|option| option == "ro" || option == "rro")
}

fn open(wasi: &mut WasiCtxBuilder, path: &Path, name: &str, read_only: bool) -> Result<()> {
    let permissions = if read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
    wasi.preopened_dir(path, name, permissions).map(drop).map_err(|error| {
        let error = error.downcast::<std::io::Error>().unwrap_or_else(std::io::Error::other);
        Error::io(format!("give the module the directory {}", path.display()))(error)
    })
}
