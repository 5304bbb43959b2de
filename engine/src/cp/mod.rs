//! Copying between the host and a container, which may be running or not, with docker's rules for what ends up where.
//!
//! ```text
//! host tree  --+                 +-->  container tree
//! container  --+--> [Sink::put] -+-->  host tree
//! tar stream --+                 +-->  tar stream
//! ```
//!
//! What a container shows is hostile: its paths are resolved by the kernel below the container's root
//! (`RESOLVE_IN_ROOT`, `openat2(2)`), by descriptor, and on the host's side no symlink that was copied is ever followed.
//! Start reading at [`place`] (where paths are resolved) and [`entry`] (what travels).

mod archive;
mod entry;
mod ids;
mod place;
mod tree;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::error::{Error, Result};

use entry::{Owner, Sink};
use place::{Place, Target};

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// `-a`: keep owners; otherwise what is copied belongs to whoever holds the destination: the container's root, or the
    /// caller.
    pub archive: bool,
    /// `-L`: copy what a symlink points to when it is the source itself.
    pub follow: bool,
}

/// A source path as it was given.
struct Given<'a> {
    path: &'a Path,
    /// It ends with `/`: it must be a directory.
    directory: bool,
    /// It ends with `/.`: what is in the directory is meant, not the directory.
    contents: bool,
}

impl<'a> Given<'a> {
    fn new(path: &'a Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        let contents = bytes == b"." || bytes.ends_with(b"/.");
        Self { path, directory: contents || bytes.ends_with(b"/"), contents }
    }
}

/// Copies from the host into a container.
pub fn copy_in(container: &Container, source: &Path, destination: &Path, how: How) -> Result<()> {
    let opened = place::open(container, destination, place::Access::Write)?;
    let owner = if how.archive { Owner::Kept { shift: opened.place.shift() } } else { opened.place.root_owner() };
    copy(&Place::host(), source, &opened.place, &opened.path, destination, how, owner)
}

/// Copies from a container to the host.
pub fn copy_out(container: &Container, source: &Path, destination: &Path, how: How) -> Result<()> {
    let opened = place::open(container, source, place::Access::Read)?;
    let given = Given::new(source);
    let path = if given.contents { opened.path.join(".") } else { opened.path.clone() };
    let path = if given.directory && !given.contents { path.join("") } else { path };
    let host = Place::host();
    let owner = if how.archive { Owner::Kept { shift: 0 } } else { host.root_owner() };
    copy(&opened.place, &path, &host, destination, destination, how, owner)
}

/// Unpacks a tar stream into a directory of a container; owners are the stream's.
pub fn unpack_into(container: &Container, stream: &mut dyn Read, destination: &Path) -> Result<()> {
    let opened = place::open(container, destination, place::Access::Write)?;
    match opened.place.look(&opened.path, true)? {
        Some(found) if found.is_dir() => {}
        _ => {
            let name = destination.display();
            return Err(Error::Invalid(format!("{name} is no directory in the container; a tar stream needs one")));
        }
    }
    let owner = Owner::Kept { shift: opened.place.shift() };
    let mut sink = tree::Writer::new(&opened.place, &opened.path, owner);
    archive::read(stream, &mut sink)?;
    sink.finish()
}

/// Packs a path of a container into a tar stream.
pub fn pack_from(container: &Container, source: &Path, stream: &mut dyn Write, how: How) -> Result<()> {
    let opened = place::open(container, source, place::Access::Read)?;
    let given = Given::new(source);
    let name = if given.contents { OsString::from(".") } else { name_of(source).unwrap_or_else(|| ".".into()) };
    let mut sink = archive::Writer::new(stream);
    let from = opened.place.target(&opened.path, how.follow || given.directory)?;
    require(&from, &given)?;
    tree::read(&opened.place, &from, Path::new(&name), &mut sink)?;
    sink.finish()
}

fn copy(
    from: &Place,
    source: &Path,
    to: &Place,
    destination: &Path,
    shown: &Path,
    how: How,
    owner: Owner,
) -> Result<()> {
    let given = Given::new(source);
    let origin = from.target(source, how.follow || given.directory)?;
    let source_is_dir = require(&origin, &given)?;
    let (base, name) = arrive(to, destination, shown, source_is_dir, &given, name_of(source))?;
    let mut sink = tree::Writer::new(to, &base, owner);
    tree::read(from, &origin, Path::new(&name), &mut sink)?;
    sink.finish()
}

/// Insists that the source is there, and a directory if it was written as one; whether it is one.
fn require(origin: &Target, given: &Given) -> Result<bool> {
    match &origin.found {
        None => Err(Error::Invalid(format!("{} does not exist; there is nothing to copy", given.path.display()))),
        Some(found) if given.directory && !found.is_dir() => {
            Err(Error::Invalid(format!("{} is no directory; leave out the `/` at its end", given.path.display())))
        }
        Some(found) => Ok(found.is_dir()),
    }
}

/// Where the copy goes: a directory that exists, and the name that the source's root takes in it; no name: the
/// source's contents go into the directory.
fn arrive(
    to: &Place,
    destination: &Path,
    shown: &Path,
    source_is_dir: bool,
    given: &Given,
    source_name: Option<OsString>,
) -> Result<(PathBuf, OsString)> {
    let refuse = |what: &str| Err(Error::Invalid(format!("{} {what}", shown.display())));
    let wants_dir = Given::new(shown).directory;
    let target = to.target(destination, true)?;
    match &target.found {
        Some(found) if found.is_dir() => match source_name {
            Some(name) if !given.contents => Ok((target.path, name)),
            _ => Ok((target.path, OsString::new())),
        },
        Some(_) if source_is_dir => refuse("is no directory; a directory cannot take its place"),
        Some(_) if wants_dir => refuse("is no directory; leave out the `/` at its end"),
        None if wants_dir && !source_is_dir => refuse("does not exist; make the directory first"),
        _ => match (target.path.parent(), target.path.file_name()) {
            (Some(parent), Some(name)) => match to.look(parent, true)? {
                Some(found) if found.is_dir() => Ok((parent.to_owned(), name.to_owned())),
                _ => refuse("lies in a directory that does not exist; make it first"),
            },
            _ => refuse("cannot be written"),
        },
    }
}

/// The last name of a path; `None` for `/`, `.` and `..`.
fn name_of(path: &Path) -> Option<OsString> {
    path.file_name().filter(|name| *name != OsStr::new("..")).map(OsStr::to_owned)
}

#[cfg(test)]
mod tests;
