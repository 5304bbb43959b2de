//! Tar streams: read into entries, and written from them.

use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{FileType, major, makedev, minor};
use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::error::{Attempt as _, Error, Result};

use super::entry::{CAPABILITY, Kind, Meta, Sink, relative};

/// Begins the key of an extended attribute in a pax header, by convention of star and GNU tar.
const XATTR: &str = "SCHILY.xattr.";

/// Reads a stream into the sink.
pub(super) fn read(stream: &mut dyn Read, sink: &mut dyn Sink) -> Result<()> {
    let attempt = || "read the tar stream";
    let mut archive = Archive::new(stream);
    for entry in archive.entries().attempt(attempt)? {
        let mut entry = entry.attempt(attempt)?;
        let path = relative(&entry.path().attempt(attempt)?)?;
        let header = entry.header();
        let id =
            |id: u64| u32::try_from(id).map_err(|_| Error::Invalid(format!("{id} in the tar stream is no user id")));
        let meta = Meta {
            mode: header.mode().attempt(attempt)? & 0o7777,
            uid: id(header.uid().attempt(attempt)?)?,
            gid: id(header.gid().attempt(attempt)?)?,
            mtime: (header.mtime().attempt(attempt)? as i64, 0),
        };
        let kind = header.entry_type();
        let device = |header: &Header| -> io::Result<u64> {
            Ok(makedev(header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default()))
        };
        let special = |format: FileType| -> Result<Kind> {
            Ok(Kind::Special { format, device: device(header).attempt(attempt)? })
        };
        match kind {
            EntryType::Directory => sink.put(&path, meta, Kind::Directory)?,
            EntryType::Symlink | EntryType::Link => {
                let Some(target) = entry.link_name().attempt(attempt)? else {
                    let path = path.display();
                    return Err(Error::Invalid(format!("the link {path} in the tar stream points nowhere")));
                };
                let kind = if kind == EntryType::Link {
                    Kind::HardLink(relative(&target)?)
                } else {
                    Kind::Symlink(target.into_owned())
                };
                sink.put(&path, meta, kind)?;
            }
            // GNU tar leaves the numbers of what is no device blank.
            EntryType::Fifo => sink.put(&path, meta, Kind::Special { format: FileType::Fifo, device: 0 })?,
            EntryType::Char => sink.put(&path, meta, special(FileType::CharacterDevice)?)?,
            EntryType::Block => sink.put(&path, meta, special(FileType::BlockDevice)?)?,
            EntryType::XGlobalHeader => {}
            // What a reader does not know it treats as a file (POSIX pax, "typeflag").
            _ => {
                let size = entry.size();
                let capability = capability(&mut entry).attempt(attempt)?;
                sink.put(&path, meta, Kind::File { size, content: &mut entry, capability })?;
            }
        }
    }
    Ok(())
}

fn capability<R: Read>(entry: &mut Entry<R>) -> io::Result<Option<Vec<u8>>> {
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let name = extension.key().ok().and_then(|key| key.strip_prefix(XATTR));
        if name == Some(CAPABILITY) {
            return Ok(Some(extension.value_bytes().to_vec()));
        }
    }
    Ok(None)
}

/// Writes entries as a stream.
pub(super) struct Writer<'a> {
    builder: Builder<&'a mut dyn Write>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(stream: &'a mut dyn Write) -> Self {
        Self { builder: Builder::new(stream) }
    }
}

impl Sink for Writer<'_> {
    fn put(&mut self, path: &Path, meta: Meta, kind: Kind) -> Result<()> {
        let attempt = || "write the tar stream";
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode);
        header.set_uid(meta.uid.into());
        header.set_gid(meta.gid.into());
        header.set_mtime(meta.mtime.0.max(0) as u64);
        header.set_size(0);
        match kind {
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.builder.append_data(&mut header, path.join(""), io::empty())
            }
            Kind::File { size, content, capability } => {
                if let Some(capability) = capability {
                    let key = format!("{XATTR}{CAPABILITY}");
                    self.builder.append_pax_extensions([(key.as_str(), capability.as_slice())]).attempt(attempt)?;
                }
                header.set_entry_type(EntryType::Regular);
                header.set_size(size);
                // The header has promised `size` bytes, whatever the file has become meanwhile.
                self.builder.append_data(&mut header, path, content.chain(io::repeat(0)).take(size))
            }
            Kind::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                self.builder.append_link(&mut header, path, target)
            }
            Kind::HardLink(first) => {
                header.set_entry_type(EntryType::Link);
                self.builder.append_link(&mut header, path, first)
            }
            Kind::Special { format, device } => {
                header.set_entry_type(match format {
                    FileType::Fifo => EntryType::Fifo,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Char,
                });
                let numbers =
                    header.set_device_major(major(device)).and_then(|()| header.set_device_minor(minor(device)));
                numbers.and_then(|()| self.builder.append_data(&mut header, path, io::empty()))
            }
        }
        .attempt(attempt)
    }

    fn finish(&mut self) -> Result<()> {
        self.builder.finish().and_then(|()| self.builder.get_mut().flush()).attempt(|| "write the tar stream")
    }
}
