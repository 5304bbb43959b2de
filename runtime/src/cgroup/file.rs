//! Reading and writing the files of a group.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// Nothing a group tells is longer; `cgroup.procs` of a large group comes nearest.
const MAX_LENGTH: u64 = 8 << 20;

/// Writes `value` in one `write(2)`, as the kernel wants it.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    try_write(path, value).map_err(|source| Error::Write { path: path.to_owned(), value: value.to_owned(), source })
}

/// Writes each of `values` in a `write(2)` of its own; opening the file is what takes time.
pub(super) fn write_each(path: &Path, values: &[impl ToString]) -> Result<()> {
    let failed = |value, source| Error::Write { path: path.to_owned(), value, source };
    let mut file = OpenOptions::new().write(true).open(path).map_err(|source| failed(String::new(), source))?;
    for value in values {
        let value = value.to_string();
        file.write_all(value.as_bytes()).map_err(|source| failed(value, source))?;
    }
    Ok(())
}

/// As [`write`], with the plain error.
pub(super) fn try_write(path: &Path, value: &str) -> io::Result<()> {
    let written = OpenOptions::new().write(true).open(path)?.write(value.as_bytes())?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The content, without the white space around it.
pub(super) fn read(path: &Path) -> Result<String> {
    try_read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// As [`read`], with the plain error.
pub(super) fn try_read(path: &Path) -> io::Result<String> {
    let mut content = String::new();
    std::fs::File::open(path)?.take(MAX_LENGTH).read_to_string(&mut content)?;
    content.truncate(content.trim_end().len());
    Ok(content)
}

/// The number in the file `name` of the group `dir`; `None`: the file is missing, or says `max`.
pub(super) fn number(dir: &Path, name: &str) -> Option<u64> {
    try_read(&dir.join(name)).ok()?.parse().ok()
}

/// The value of `key` in a file of lines `key value`.
pub(super) fn keyed(content: &str, key: &str) -> Option<u64> {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The groups directly below a group. What vanishes meanwhile is left out.
pub(super) fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
