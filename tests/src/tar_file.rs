//! Tar archives written entry by entry: what packers write, and what only an attacker would.

use std::io::Write;

use tar::{Builder, EntryType, Header};

/// A tar archive in memory. Names go in as they are, however hostile.
pub struct TarFile {
    builder: Builder<Vec<u8>>,
}

/// Owner, mode and time of an entry.
#[derive(Clone, Copy)]
pub struct Meta {
    /// Permission bits, with setuid and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Meta {
    /// root:root, 1970, with this mode.
    pub fn mode(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0 }
    }
}

impl Default for TarFile {
    fn default() -> Self {
        Self::new()
    }
}

impl TarFile {
    /// An empty archive.
    pub fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), b"", Meta::mode(0o644), content.as_ref())
    }

    /// A folder.
    #[must_use]
    pub fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name.as_bytes(), b"", Meta::mode(0o755), b"")
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name.as_bytes(), target.as_bytes(), Meta::mode(0o777), b"")
    }

    /// A hard link to an earlier entry, or to a file of a lower layer.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name.as_bytes(), target.as_bytes(), Meta::mode(0o644), b"")
    }

    /// A device node.
    #[must_use]
    pub fn device(mut self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let mut header = header(kind, name.as_bytes(), b"", Meta::mode(0o600), 0);
        header.set_device_major(major).expect("a ustar header has device numbers");
        header.set_device_minor(minor).expect("a ustar header has device numbers");
        header.set_cksum();
        self.builder.append(&header, &b""[..]).expect("writing to memory");
        self
    }

    /// PAX records for the entry that follows, such as `SCHILY.xattr.user.x`.
    #[must_use]
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.builder.append_pax_extensions(records.iter().copied()).expect("writing to memory");
        self
    }

    /// Any entry. A name or target of more than 100 bytes is told by a PAX record.
    #[must_use]
    pub fn entry(mut self, kind: EntryType, name: &[u8], target: &[u8], meta: Meta, content: &[u8]) -> Self {
        let mut records = Vec::new();
        if name.len() > 100 {
            records.push(("path", name));
        }
        if target.len() > 100 {
            records.push(("linkpath", target));
        }
        if !records.is_empty() {
            self.builder.append_pax_extensions(records).expect("writing to memory");
        }
        let mut header = header(kind, name, target, meta, content.len() as u64);
        header.set_cksum();
        self.builder.append(&header, content).expect("writing to memory");
        self
    }

    /// An entry that claims to be `claimed` bytes long, followed by `content` whatever its length.
    #[must_use]
    pub fn lying_file(mut self, name: &str, claimed: u64, content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, name.as_bytes(), b"", Meta::mode(0o644), claimed);
        header.set_cksum();
        self.builder.get_mut().write_all(header.as_bytes()).expect("writing to memory");
        self.builder.get_mut().write_all(content).expect("writing to memory");
        self
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().expect("writing to memory")
    }
}

/// A ustar header, without its checksum. Writes names past the library's own checks.
fn header(kind: EntryType, name: &[u8], target: &[u8], meta: Meta, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(meta.mode);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    header.set_mtime(meta.mtime);
    header.set_size(size);
    let fields = header.as_ustar_mut().expect("it was made as ustar");
    let short = name.len().min(100);
    fields.name[..short].copy_from_slice(&name[..short]);
    let short = target.len().min(100);
    fields.linkname[..short].copy_from_slice(&target[..short]);
    header
}
