//! Owner, mode, times and extended attributes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
    flistxattr, fsetxattr, futimens, utimensat,
};
use rustix::io::Errno;

use super::LayerError;
use super::limits::MAX_XATTR;
use crate::tar::Entry;

/// Bits that need a `chmod` after the `chown`, which clears them.
const SPECIAL: u32 = 0o7000;

/// The metadata of a file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// Permission and special bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds of the modification time.
    pub mtime: (i64, i64),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// As the entry says.
    pub fn of_entry(entry: &mut Entry) -> Result<Self, LayerError> {
        let id = |id: u64| {
            // u32::MAX means "leave as it is" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| LayerError::entry(&entry.path, format!("has the owner {id}, which is out of range")))
        };
        let (uid, gid) = (id(entry.uid)?, id(entry.gid)?);
        let mut xattrs = std::mem::take(&mut entry.xattrs);
        xattrs.retain(|(name, _)| is_wanted(name));
        if let Some((name, _)) = xattrs.iter().find(|(name, value)| name.len() > 255 || value.len() > MAX_XATTR) {
            let name = name[..name.len().min(255)].escape_ascii();
            return Err(LayerError::entry(
                &entry.path,
                format!("has the extended attribute '{name}', which is too large"),
            ));
        }
        Ok(Self { mode: entry.mode, uid, gid, mtime: (entry.mtime, i64::from(entry.mtime_nanos)), xattrs })
    }

    /// As a file of a lower layer has it; `file` must be open for reading.
    pub fn of_file(file: impl AsFd, stat: &Stat, path: &[u8]) -> Result<Self, LayerError> {
        let mut xattrs = Vec::new();
        let mut names = vec![0; MAX_XATTR];
        let length = match flistxattr(&file, &mut names[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other.map_err(LayerError::io("list the extended attributes of", path))?,
        };
        for name in names[..length].split(|byte| *byte == 0).filter(|name| is_wanted(name)) {
            let mut value = vec![0; MAX_XATTR];
            let length = fgetxattr(&file, name, &mut value[..])
                .map_err(LayerError::io("read an extended attribute of", path))?;
            value.truncate(length);
            xattrs.push((name.to_vec(), value));
        }
        Ok(Self::of_stat(stat, xattrs))
    }

    /// As a file of a lower layer has it that cannot be opened for reading (a link or device).
    pub fn of_stat(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            xattrs,
        }
    }

    /// Completes a file that was just created with this mode by the current user under a umask of zero.
    pub fn apply_to_new(&self, file: impl AsFd, path: &[u8]) -> Result<(), LayerError> {
        if (self.uid, self.gid) != (0, 0) {
            self.chown(&file, path)?;
        }
        if self.mode & SPECIAL != 0 {
            self.chmod(&file, path)?;
        }
        self.set_xattrs_and_times(&file, path)
    }

    /// Sets everything, whatever was there.
    pub fn apply(&self, file: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        self.chown(file, path)?;
        self.chmod(file, path)?;
        self.set_xattrs_and_times(file, path)
    }

    fn chown(&self, file: impl AsFd, path: &[u8]) -> Result<(), LayerError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        fchown(file, Some(uid), Some(gid)).map_err(LayerError::io("change the owner of", path))
    }

    fn chmod(&self, file: impl AsFd, path: &[u8]) -> Result<(), LayerError> {
        fchmod(file, Mode::from_raw_mode(self.mode)).map_err(LayerError::io("change the mode of", path))
    }

    fn set_xattrs_and_times(&self, file: impl AsFd, path: &[u8]) -> Result<(), LayerError> {
        for (name, value) in &self.xattrs {
            fsetxattr(&file, &name[..], value, XattrFlags::empty())
                .map_err(LayerError::io("set an extended attribute of", path))?;
        }
        futimens(file, &self.times()).map_err(LayerError::io("set the time of", path))
    }

    /// Completes a link or device that was just created, by name, without following it.
    pub fn apply_at(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), LayerError> {
        if (self.uid, self.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(LayerError::io("change the owner of", path))?;
        }
        utimensat(parent, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(LayerError::io("set the time of", path))
    }

    fn times(&self) -> Timestamps {
        let (tv_sec, tv_nsec) = self.mtime;
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec, tv_nsec },
        }
    }
}

/// Which extended attributes an image may carry. `trusted.*` steers overlayfs on the host and `security.selinux`,
/// `security.ima` and `security.evm` belong to the host's policy: an image has no say in them.
fn is_wanted(name: &[u8]) -> bool {
    name == b"security.capability"
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}
