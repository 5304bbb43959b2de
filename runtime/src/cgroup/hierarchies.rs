//! Which cgroup hierarchies the host has, and which controller is in which.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cgroups_rs::fs::Hierarchy;
use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, V1, is_cgroup2_unified_mode};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Error, Result, file};

/// Where systemd mounts the v2 hierarchy beside those of v1.
const HYBRID_MOUNTPOINT: &str = "/sys/fs/cgroup/unified";

/// The mounted hierarchies; at least one.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    /// Empty on a pure v2 host.
    pub v1: Vec<Mount>,
    pub v2: Option<Mount>,
}

/// One mounted hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub point: PathBuf,
    /// What it can control. On v1 `cpu` and `cpuacct` are often in one hierarchy; on v2 there may be none.
    pub controllers: Vec<String>,
}

impl Mount {
    /// The v2 hierarchy mounted at `point`.
    pub fn v2(point: &str) -> Self {
        let controllers = file::try_read(&Path::new(point).join("cgroup.controllers")).unwrap_or_default();
        Self { point: point.into(), controllers: controllers.split_ascii_whitespace().map(str::to_owned).collect() }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Where a controller is, as the directory of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Controller {
    V1(PathBuf),
    /// In the v2 hierarchy; the controller may still have to be enabled for the group.
    V2(PathBuf),
    /// Nowhere.
    Missing,
}

impl Hierarchies {
    /// Those of this host. Looked up once in a process: the mount table may be long.
    pub fn of_this_host() -> Result<&'static Self> {
        static FOUND: OnceLock<Hierarchies> = OnceLock::new();
        let found = FOUND.get_or_init(Self::find);
        if found.v1.is_empty() && found.v2.is_none() { Err(Error::NoHierarchy) } else { Ok(found) }
    }

    fn find() -> Self {
        if is_cgroup2_unified_mode() {
            return Self { v1: Vec::new(), v2: Some(Mount::v2(UNIFIED_MOUNTPOINT)) };
        }
        let mut v1: Vec<Mount> = Vec::new();
        for subsystem in V1::new().subsystems() {
            let point = subsystem.to_controller().path();
            match v1.iter_mut().find(|mount| mount.point == point) {
                Some(mount) => mount.controllers.push(subsystem.controller_name()),
                None => v1.push(Mount { point: point.to_owned(), controllers: vec![subsystem.controller_name()] }),
            }
        }
        let v2 = statfs(HYBRID_MOUNTPOINT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        Self { v1, v2: v2.then(|| Mount::v2(HYBRID_MOUNTPOINT)) }
    }

    /// Every mount point.
    pub fn points(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().chain(&self.v2).map(|mount| mount.point.as_path())
    }

    /// The mount point of the hierarchy that knows best about processes.
    pub fn main_point(&self) -> &Path {
        let v1 = || self.v1.iter().find(|mount| mount.has("freezer")).or(self.v1.first());
        &self.v2.as_ref().or_else(v1).expect("of_this_host() returns no empty ones").point
    }

    /// Where the controller `name` is for the group at `path`.
    pub fn controller(&self, name: &str, path: &Path) -> Controller {
        if let Some(mount) = self.v1.iter().find(|mount| mount.has(name)) {
            return Controller::V1(mount.point.join(path));
        }
        match self.v2.as_ref().filter(|mount| mount.has(name)) {
            Some(mount) => Controller::V2(mount.point.join(path)),
            None => Controller::Missing,
        }
    }
}
