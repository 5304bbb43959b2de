//! Mount options of `config.json` sorted by what they become (`mount(8)`, OCI runtime-spec "Linux mount options"):
//! attributes of the mount, its propagation, or parameters of the filesystem.

use nix::mount::MsFlags;

/// `MOUNT_ATTR_…` of `linux/mount.h`.
pub(super) mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// The three access-time modes are values of one field.
    pub const ATIME_MASK: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x0010_0000;
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// The options of one mount.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`: with everything mounted below.
    pub recursive: bool,
    /// Attributes to set, on the mount itself.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// Attributes to set on the mount and all below (`rro`, `rnosuid`, …).
    pub set_recursive: u64,
    /// Attributes to clear on the mount and all below.
    pub clear_recursive: u64,
    /// `private`, `rslave`, …; none: as the kernel makes it.
    pub propagation: Option<MsFlags>,
    /// `ridmap`: the ids of what is mounted below are mapped too.
    pub maps_all_ids: bool,
    /// `tmpcopyup`: fill the tmpfs with what it covers.
    pub copy_up: bool,
    /// Everything else goes to the filesystem: `key` or `key=value`.
    pub filesystem: Vec<String>,
}

impl Options {
    /// Sorts the options of a mount.
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.take(option);
        }
        parsed
    }

    fn take(&mut self, option: &str) {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            // The last: whether ids are mapped is not said by options alone, so `outside` looks at the whole entry.
            "defaults" | "async" | "remount" | "nomand" | "norelatime" | "iversion" | "idmap" => {}
            "ridmap" => self.maps_all_ids = true,
            "tmpcopyup" => self.copy_up = true,
            _ => {
                if let Some(flags) = propagation(option) {
                    self.propagation = Some(flags);
                } else if let Some((set, clear)) = attributes(option) {
                    self.set = self.set & !clear | set;
                    self.clear = self.clear & !set | clear;
                } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attributes) {
                    self.set_recursive = self.set_recursive & !clear | set;
                    self.clear_recursive = self.clear_recursive & !set | clear;
                } else {
                    self.filesystem.push(option.to_owned());
                }
            }
        }
    }
}

/// What an option sets and clears.
fn attributes(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        // To change the access-time mode the whole field has to be cleared.
        "noatime" => (attr::NOATIME, attr::ATIME_MASK),
        "strictatime" => (attr::STRICTATIME, attr::ATIME_MASK),
        "relatime" | "atime" | "nostrictatime" => (0, attr::ATIME_MASK),
        _ => return None,
    })
}

/// The flags of a propagation option.
pub(super) fn propagation(option: &str) -> Option<MsFlags> {
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_what_they_become() {
        let parsed = parse(&["rbind", "ro", "rslave", "nosuid", "mode=755", "rnodev"]);
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(parsed.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(parsed.set_recursive, attr::NODEV);
        assert_eq!(parsed.propagation, Some(MsFlags::MS_SLAVE | MsFlags::MS_REC));
        assert_eq!(parsed.filesystem, ["mode=755"]);
    }

    #[test]
    fn the_last_of_two_contrary_options_wins() {
        let parsed = parse(&["ro", "rw"]);
        assert_eq!((parsed.set, parsed.clear), (0, attr::RDONLY));
        let parsed = parse(&["rw", "ro"]);
        assert_eq!((parsed.set, parsed.clear), (attr::RDONLY, 0));
    }

    #[test]
    fn access_time_modes_replace_each_other() {
        let parsed = parse(&["noatime", "strictatime"]);
        assert_eq!(parsed.set & attr::ATIME_MASK, attr::STRICTATIME);
    }
}
