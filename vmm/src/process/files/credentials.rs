//! Who a process is to others and to files (credentials(7)).

use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{getgroups, getresgid, getresuid};
use rustix::thread::CapabilitySet;

use super::broker::Broker;
use crate::process::Result;

/// Most supplementary groups.
pub const MOST_GROUPS: usize = 1024;

/// The ids of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// Whose the process is.
    pub real: u32,
    /// Whose rights it has.
    pub effective: u32,
    /// What it may go back to.
    pub saved: u32,
}

impl Ids {
    /// As `setuid(2)`: all of them for who may, else the effective one.
    pub fn set(self, id: u32, may: bool) -> Result<Self> {
        match id {
            id if may => Ok(Self { real: id, effective: id, saved: id }),
            id if id == self.real || id == self.saved => Ok(Self { effective: id, ..self }),
            _ => Err(Errno::EPERM),
        }
    }

    /// As `setreuid(2)`; `None` leaves an id as it is.
    pub fn set_two(self, real: Option<u32>, effective: Option<u32>, may: bool) -> Result<Self> {
        let known = |id: u32| id == self.real || id == self.effective;
        let allowed = real.is_none_or(known) && effective.is_none_or(|id| known(id) || id == self.saved);
        if !may && !allowed {
            return Err(Errno::EPERM);
        }
        let new = Self { real: real.unwrap_or(self.real), effective: effective.unwrap_or(self.effective), ..self };
        let moves = real.is_some() || effective.is_some_and(|id| id != self.real);
        Ok(if moves { Self { saved: new.effective, ..new } } else { new })
    }

    /// As `setresuid(2)`; `None` leaves an id as it is.
    pub fn set_three(self, [real, effective, saved]: [Option<u32>; 3], may: bool) -> Result<Self> {
        let known = |id: u32| id == self.real || id == self.effective || id == self.saved;
        if !may && ![real, effective, saved].into_iter().flatten().all(known) {
            return Err(Errno::EPERM);
        }
        Ok(Self {
            real: real.unwrap_or(self.real),
            effective: effective.unwrap_or(self.effective),
            saved: saved.unwrap_or(self.saved),
        })
    }

    /// All three, as the kernel lists them.
    pub fn all(self) -> [u32; 3] {
        [self.real, self.effective, self.saved]
    }
}

/// A process's ids, groups and capabilities. Unlike on Linux its threads share them.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The users.
    pub user: Ids,
    /// The groups.
    pub group: Ids,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// What it may be allowed beyond that.
    pub permitted: CapabilitySet,
    /// Who makes calls for it that the VMM has no right to.
    pub broker: Option<Arc<Broker>>,
}

impl Credentials {
    /// Those of this very process.
    pub fn own() -> Result<Self> {
        let (user, group) = (getresuid()?, getresgid()?);
        let held = rustix::thread::capabilities(None).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
        Ok(Self {
            user: Ids { real: user.real.into(), effective: user.effective.into(), saved: user.saved.into() },
            group: Ids { real: group.real.into(), effective: group.effective.into(), saved: group.saved.into() },
            groups: getgroups()?.into_iter().map(Into::into).collect(),
            permitted: held.permitted,
            broker: None,
        })
    }

    /// What it is allowed now: nothing while it is root in reserve only (capabilities(7)).
    pub fn capabilities(&self) -> CapabilitySet {
        let reserve = self.user.effective != 0 && self.user.all().contains(&0);
        if reserve { CapabilitySet::empty() } else { self.permitted }
    }

    /// Whether it is allowed something now.
    pub fn has(&self, capability: CapabilitySet) -> bool {
        self.capabilities().contains(capability)
    }

    /// Whether it is allowed any of these now.
    pub fn has_any(&self, capabilities: CapabilitySet) -> bool {
        self.capabilities().intersects(capabilities)
    }

    /// With other users. Who was root and can be it no more loses all capabilities.
    #[must_use]
    pub fn with_users(&self, user: Ids) -> Self {
        let falls = self.user.all().contains(&0) && !user.all().contains(&0);
        let permitted = if falls { CapabilitySet::empty() } else { self.permitted };
        Self { user, permitted, ..self.clone() }
    }

    /// Whether it may send a signal to a process with these (kill(2)).
    pub fn may_signal(&self, other: &Self) -> bool {
        let reached = [other.user.real, other.user.saved];
        self.has(CapabilitySet::KILL) || reached.contains(&self.user.real) || reached.contains(&self.user.effective)
    }

    /// Whether it may see and set the limits of another process with these (prlimit(2)).
    pub fn may_limit(&self, other: &Self) -> bool {
        let all = |ids: Ids, id: u32| ids.all().into_iter().all(|other| other == id);
        self.has(CapabilitySet::SYS_RESOURCE) || all(other.user, self.user.real) && all(other.group, self.group.real)
    }

    /// With the real ids in place of the effective ones, as access(2) looks at files.
    #[must_use]
    pub fn as_real(&self) -> Self {
        let real = |ids: Ids| Ids { effective: ids.real, ..ids };
        Self { user: real(self.user), group: real(self.group), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Ids = Ids { real: 0, effective: 0, saved: 0 };

    #[test]
    fn ids_change_as_on_linux() {
        let user = ROOT.set(7, true).unwrap();
        assert_eq!(user.all(), [7, 7, 7]);
        assert_eq!(user.set(8, false), Err(Errno::EPERM));
        // A daemon drops its rights for a while, takes them back, and then for good.
        let dropped = ROOT.set_three([None, Some(7), None], true).unwrap();
        assert_eq!(dropped.set_two(None, Some(0), false).unwrap().all(), [0, 0, 0]);
        assert_eq!(dropped.set_two(Some(7), Some(7), false).unwrap().all(), [7, 7, 7]);
        assert_eq!(dropped.set_three([Some(9), None, None], false), Err(Errno::EPERM));
    }

    #[test]
    fn who_is_root_no_more_has_no_capabilities() {
        let root =
            Credentials { user: ROOT, group: ROOT, groups: vec![], permitted: CapabilitySet::CHOWN, broker: None };
        let away = root.with_users(Ids { effective: 7, ..ROOT });
        assert!(root.has(CapabilitySet::CHOWN) && !away.has(CapabilitySet::CHOWN));
        assert!(away.with_users(ROOT).has(CapabilitySet::CHOWN));
        let gone = root.with_users(Ids { real: 7, effective: 7, saved: 7 });
        assert!(gone.permitted.is_empty());
    }
}
