//! Capabilities: docker's default list, `--cap-add`, `--cap-drop` and `--privileged`.

use oci_spec::runtime::{Capabilities, Capability};

use super::Error;

/// Every capability at the place of its number, as in `linux/capability.h`.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container has unless told otherwise: docker's list.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// A name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    All,
    One(Capability),
}

/// Checks one name of `--cap-add` or `--cap-drop`: a capability with or without `CAP_`, in any case, or `ALL`.
pub fn check(name: &str) -> Result<(), Error> {
    parse(name).map(|_| ())
}

fn parse(name: &str) -> Result<Wish, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(Wish::All);
    }
    ALL.into_iter()
        .find(|capability| capability.to_string() == short)
        .map(Wish::One)
        .ok_or_else(|| Error::UnknownCapability { name: name.to_owned(), near: near(short) })
}

/// The three names most like `short`, best first; none where nothing is alike.
fn near(short: &str) -> Vec<String> {
    // Similarity costs the product of both lengths, and the longest name has 18 letters.
    if short.len() > 64 {
        return Vec::new();
    }
    let mut alike: Vec<(f64, String)> = ALL
        .iter()
        .map(|capability| {
            let name = capability.to_string();
            (strsim::jaro_winkler(short, &name), name)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    alike.into_iter().take(3).map(|(_, name)| name).collect()
}

/// The capabilities of a container. `available` are those that berth can give.
///
/// As in docker, `ALL` is taken first and single names after it, so `--cap-drop ALL --cap-add CHOWN` leaves one and
/// `--cap-add ALL --cap-drop CHOWN` all but one. Defaults that berth cannot give are left out; a name asked for by a
/// person that berth cannot give is an error.
pub fn compute(
    add: &[String],
    drop: &[String],
    privileged: bool,
    available: &Capabilities,
) -> Result<Capabilities, Error> {
    let added = add.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let dropped = drop.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    if privileged {
        return Ok(available.clone());
    }
    let mut set: Capabilities = if added.contains(&Wish::All) {
        available.clone()
    } else if dropped.contains(&Wish::All) {
        Capabilities::new()
    } else {
        DEFAULT.into_iter().filter(|capability| available.contains(capability)).collect()
    };
    for wish in dropped {
        if let Wish::One(capability) = wish {
            set.remove(&capability);
        }
    }
    for wish in added {
        if let Wish::One(capability) = wish {
            if !available.contains(&capability) {
                return Err(Error::MissingCapability { name: capability.to_string() });
            }
            set.insert(capability);
        }
    }
    Ok(set)
}

/// The capabilities in `bits`, one bit each as in `/proc/self/status`.
pub(super) fn from_bits(bits: u64) -> Capabilities {
    ALL.into_iter()
        .enumerate()
        .filter(|(number, _)| bits & (1 << number) != 0)
        .map(|(_, capability)| capability)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Capabilities {
        from_bits(u64::MAX)
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn default_is_dockers_fourteen() {
        let set = compute(&[], &[], false, &all()).unwrap();
        assert_eq!(set, DEFAULT.into_iter().collect());
        assert_eq!(set.len(), 14);
    }

    #[test]
    fn bits_follow_the_kernels_numbers() {
        assert_eq!(from_bits(1 << 12), Capabilities::from([Capability::NetAdmin]));
        assert_eq!(from_bits(1 << 40), Capabilities::from([Capability::CheckpointRestore]));
        assert_eq!(all().len(), 41);
    }

    #[test]
    fn add_and_drop_single_names_with_and_without_prefix() {
        let set = compute(&names(&["net_admin", "CAP_SYS_TIME"]), &names(&["cap_chown"]), false, &all()).unwrap();
        assert!(set.contains(&Capability::NetAdmin) && set.contains(&Capability::SysTime));
        assert!(!set.contains(&Capability::Chown));
        assert_eq!(set.len(), 15);
    }

    #[test]
    fn all_comes_before_single_names() {
        let set = compute(&names(&["CHOWN"]), &names(&["ALL"]), false, &all()).unwrap();
        assert_eq!(set, Capabilities::from([Capability::Chown]));
        let set = compute(&names(&["ALL"]), &names(&["CHOWN"]), false, &all()).unwrap();
        assert_eq!(set.len(), 40);
        assert!(!set.contains(&Capability::Chown));
    }

    #[test]
    fn privileged_has_all_that_is_available() {
        let available = from_bits(0b1011);
        assert_eq!(compute(&[], &names(&["ALL"]), true, &available).unwrap(), available);
    }

    #[test]
    fn unavailable_default_is_left_out_and_unavailable_wish_refused() {
        let available = from_bits(1);
        assert_eq!(compute(&[], &[], false, &available).unwrap(), available);
        let error = compute(&names(&["SYS_RESOURCE"]), &[], false, &available).unwrap_err();
        assert!(error.to_string().contains("'SYS_RESOURCE'"), "{error}");
    }

    #[test]
    fn unknown_name_lists_near_ones() {
        let error = check("NET_ADMN").unwrap_err().to_string();
        assert!(error.contains("'NET_ADMN'") && error.contains("NET_ADMIN"), "{error}");
        for bad in ["", "CAP_", "💥", &"X".repeat(1 << 20), "ALL ", "-1"] {
            check(bad).unwrap_err();
        }
    }
}
