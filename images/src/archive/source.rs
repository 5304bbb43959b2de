//! Where an archive's members are read from: a folder, or a tar file indexed once and then read at will.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::MAX_DOCUMENT;
use crate::tar::{self, Kind, Reader};

/// Most members of an archive of images.
const MAX_MEMBERS: usize = 1 << 20;
/// Links followed to reach a member.
const MAX_LINKS: usize = 8;

/// A folder or tar file with images in it.
pub enum Source {
    Folder(PathBuf),
    Tar { name: String, file: File, members: HashMap<String, Member> },
}

/// One member of a tar file.
pub enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

impl Source {
    /// Indexes a tar file.
    pub fn tar(name: &str, file: File) -> Result<Self> {
        let damaged = |error: tar::Error| Error::invalid(name, error);
        let again = file.try_clone().map_err(Error::io("open", name))?;
        let mut reader = Reader::new(BufReader::with_capacity(1 << 18, again));
        let mut members = HashMap::new();
        while let Some(entry) = reader.next_entry().map_err(damaged)? {
            if members.len() == MAX_MEMBERS {
                return Err(Error::invalid(name, format!("it has more than {MAX_MEMBERS} members")));
            }
            let Some(path) = clean("", &entry.path) else {
                continue;
            };
            let member = match entry.kind {
                Kind::File if entry.extents.is_none() => Member::Data { offset: reader.position(), size: entry.size },
                Kind::HardLink => match clean("", &entry.link) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                Kind::Symlink => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    match clean(parent, &entry.link) {
                        Some(target) => Member::Link(target),
                        None => continue,
                    }
                }
                _ => continue,
            };
            members.insert(path, member);
        }
        Ok(Self::Tar { name: name.to_owned(), file, members })
    }

    /// What to call it in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Tar { name, .. } => name.clone(),
        }
    }

    pub fn has(&self, path: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(path).is_file(),
            Self::Tar { members, .. } => members.contains_key(path),
        }
    }

    /// Opens a member.
    pub fn open(&self, path: &str) -> Result<Box<dyn Read + '_>> {
        let missing = || Error::invalid(self.name(), format!("it has no '{path}'"));
        match self {
            Self::Folder(folder) => {
                let path = folder.join(Path::new(path));
                File::open(&path).map(|file| Box::new(file) as Box<dyn Read>).map_err(Error::io("open", path))
            }
            Self::Tar { file, members, .. } => {
                let mut at = clean("", path.as_bytes()).ok_or_else(missing)?;
                for _ in 0..MAX_LINKS {
                    match members.get(&at).ok_or_else(missing)? {
                        Member::Data { offset, size } => {
                            return Ok(Box::new(Section { file, offset: *offset, left: *size }));
                        }
                        Member::Link(target) => at.clone_from(target),
                    }
                }
                Err(missing())
            }
        }
    }

    /// Reads a member that must be a short document.
    pub fn document(&self, path: &str) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        self.open(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
        if text.len() as u64 > MAX_DOCUMENT {
            return Err(Error::invalid(self.name(), format!("its '{path}' is longer than {MAX_DOCUMENT} bytes")));
        }
        Ok(text)
    }
}

/// A path relative to `parent`, without `.` and `..`. `None` if it leads out of the archive or is not UTF-8.
fn clean(parent: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A stretch of a file.
struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
