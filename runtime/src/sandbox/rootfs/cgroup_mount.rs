//! `/sys/fs/cgroup` inside the sandbox: the version 2 hierarchy, or a tmpfs with one mount for each version 1
//! hierarchy. In a cgroup namespace the root of what is seen is the sandbox's own group (`cgroup_namespaces(7)`);
//! without one, the sandbox's own group of each hierarchy is bound there, so that the host's others stay hidden.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::mount::{Kind, Root, attach, bind, filesystem_of};
use super::options::{Options, attr};
use crate::error::{Attempt as _, Error, Result};

pub(super) fn is_cgroup(entry: &Mount) -> bool {
    matches!(entry.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// One hierarchy the process is in, a line of `/proc/self/cgroup`.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// `cpu,cpuacct`, `name=systemd`; empty for version 2.
    controllers: String,
    /// The process's group in it.
    group: String,
}

/// Mounts the control groups at the entry's destination.
pub(super) fn mount(root: &Root, entry: &Mount, own_namespace: bool) -> Result<()> {
    let destination = entry.destination();
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    let point = root.mount_point(destination, Kind::Directory)?;
    let mounted = |what: &str| format!("mount {what} at {}", destination.display());
    let hierarchies = hierarchies(&read("/proc/self/cgroup")?);
    let make = |hierarchy: &Hierarchy| -> Result<OwnedFd> {
        if own_namespace { hierarchy.mount(options.set) } else { hierarchy.bind(&options) }
    };
    if let [only] = hierarchies.as_slice()
        && only.controllers.is_empty()
    {
        return attach(make(only)?, &point).attempt(|| mounted("the control groups"));
    }
    let tmpfs = filesystem_of("tmpfs", "tmpfs", &["mode=755"], options.set & !attr::RDONLY)?;
    attach(&tmpfs, &point).attempt(|| mounted("a tmpfs"))?;
    let tmpfs = Root(tmpfs);
    for hierarchy in hierarchies.iter().filter(|hierarchy| !hierarchy.controllers.is_empty()) {
        let point = tmpfs.mount_point(Path::new(hierarchy.name()), Kind::Directory)?;
        attach(make(hierarchy)?, &point).attempt(|| mounted(hierarchy.name()))?;
    }
    // Read-only only now, so that the directories above could be made.
    super::set_attributes(&tmpfs.0, options.set & attr::RDONLY, 0, false).attempt(|| mounted("the tmpfs read-only"))
}

impl Hierarchy {
    /// The customary name of its directory.
    fn name(&self) -> &str {
        self.controllers.trim_start_matches("name=")
    }

    /// A new mount, which shows the cgroup namespace's root.
    fn mount(&self, attributes: u64) -> Result<OwnedFd> {
        if self.controllers.is_empty() {
            return filesystem_of("cgroup2", "cgroup", &[], attributes);
        }
        let mut parameters: Vec<&str> = self.controllers.split(',').collect();
        if self.controllers.starts_with("name=") {
            parameters.insert(0, "none");
        }
        filesystem_of("cgroup", "cgroup", &parameters, attributes)
    }

    /// The process's own group, bound from the host's mount of the hierarchy.
    fn bind(&self, options: &Options) -> Result<OwnedFd> {
        let mounts = read("/proc/self/mountinfo")?;
        let (root, point) = host_mount(&mounts, &self.controllers).ok_or_else(|| {
            Error::Invalid(format!("the host has not mounted the control group hierarchy `{}`", self.controllers))
        })?;
        let group = self.group.strip_prefix(&root).unwrap_or(&self.group);
        bind(&point.join(group.trim_start_matches('/')), options)
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).attempt(|| format!("read {path}"))
}

/// The hierarchies in the text of `/proc/self/cgroup` (`cgroups(7)`).
fn hierarchies(text: &str) -> Vec<Hierarchy> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?.to_owned();
            Some(Hierarchy { controllers, group: fields.next()?.to_owned() })
        })
        .collect()
}

/// Root and mount point of a hierarchy in the text of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
fn host_mount(text: &str, controllers: &str) -> Option<(String, PathBuf)> {
    text.lines().find_map(|line| {
        let (fields, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let parameters: Vec<&str> = filesystem.nth(1)?.split(',').collect();
        let matches = match controllers {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && controllers.split(',').all(|controller| parameters.contains(&controller)),
        };
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        matches.then(|| (root.trim_end_matches('/').to_owned(), Path::new(point).to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_with_the_group_in_each() {
        let found = hierarchies("9:name=systemd:/\n8:pids:/x:y\n3:cpu,cpuacct:/\n0::/\n");
        assert_eq!(found.iter().map(Hierarchy::name).collect::<Vec<_>>(), ["systemd", "pids", "cpu,cpuacct", ""]);
        assert_eq!(found[1].group, "/x:y");
    }

    #[test]
    fn the_hosts_mount_of_a_hierarchy_is_found() {
        let text = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                    41 31 0:38 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mount = |controllers| host_mount(text, controllers);
        assert_eq!(mount("cpu,cpuacct"), Some((String::new(), "/sys/fs/cgroup/cpu,cpuacct".into())));
        assert_eq!(mount(""), Some(("/a".into(), "/sys/fs/cgroup/unified".into())));
        assert_eq!(mount("pids"), None);
    }
}
