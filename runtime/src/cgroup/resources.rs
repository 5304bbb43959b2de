//! `linux.resources` of the OCI configuration, applied to a group.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxRdma, LinuxResources};

use super::hierarchies::Controller;
use super::v2::or_max;
use super::{CgroupManager, Error, Result, Warning, devices, v1, v2, write};

/// The limit the host has no controller for.
pub(super) fn unsupported(controller: &'static str, limit: &str) -> Error {
    Error::Unsupported { controller, limit: limit.to_owned() }
}

/// A file that is missing is a limit the controller does not have, or a controller that is not enabled for the group.
fn lacking(controller: &'static str) -> impl Fn(Error) -> Error {
    move |error| match &error {
        Error::Write { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            unsupported(controller, &path.file_name().unwrap_or_default().to_string_lossy())
        }
        _ => error,
    }
}

impl CgroupManager {
    /// Applies the resources of a new sandbox. The device rules start from "everything denied" and always end with
    /// [`DEFAULT_DEVICES`](super::DEFAULT_DEVICES).
    ///
    /// `rootless`: device rules are left out where the kernel does not let an unprivileged user set them; a user namespace
    /// opens no device anyway. Returns the wishes that were left out without harm.
    pub fn apply(&self, resources: &LinuxResources, rootless: bool) -> Result<Vec<Warning>> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        match devices::apply(self, rules) {
            Err(error) if rootless && is_denied(&error) => {}
            result => result?,
        }
        self.apply_limits(resources)
    }

    /// Changes the limits of a running sandbox: what `resources` does not mention stays as it is, devices included.
    pub fn update(&self, resources: &LinuxResources) -> Result<Vec<Warning>> {
        if let Some(rules) = resources.devices() {
            devices::apply(self, rules)?;
        }
        self.apply_limits(resources)
    }

    fn apply_limits(&self, resources: &LinuxResources) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        if let Some(memory) = resources.memory().filter(|memory| *memory != LinuxMemory::default()) {
            match self.controller("memory") {
                Controller::V1(dir) => {
                    v1::memory(&dir, &memory, &mut warnings).map_err(lacking("memory"))?;
                }
                Controller::V2(dir) => {
                    v2::memory(&dir, &memory, &mut warnings).map_err(lacking("memory"))?;
                }
                Controller::Missing => return Err(unsupported("memory", "memory limits")),
            }
            if memory.kernel().is_some() {
                warnings.push(Warning { limit: "memory.kernel", reason: "Linux no longer has it" });
            }
        }
        if let Some(cpu) = resources.cpu() {
            let time =
                cpu.shares().is_some() || cpu.quota().is_some() || cpu.period().is_some() || cpu.burst().is_some();
            if time || cpu.idle().is_some() || cpu.realtime_period().is_some() || cpu.realtime_runtime().is_some() {
                match self.controller("cpu") {
                    Controller::V1(dir) => v1::cpu(&dir, cpu).map_err(lacking("cpu"))?,
                    Controller::V2(dir) => v2::cpu(&dir, cpu).map_err(lacking("cpu"))?,
                    Controller::Missing => return Err(unsupported("cpu", "cpu limits")),
                }
            }
            for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
                if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                    write(&self.anywhere("cpuset", name)?.join(name), value).map_err(lacking("cpuset"))?;
                }
            }
        }
        // Zero is what writers without an optional field write for "not mentioned".
        if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
            write(&self.anywhere("pids", "pids.limit")?.join("pids.max"), &or_max(limit)).map_err(lacking("pids"))?;
        }
        if let Some(io) = resources.block_io().as_ref().filter(|io| **io != LinuxBlockIo::default()) {
            match (self.controller("blkio"), self.controller("io")) {
                (Controller::V1(dir), _) => v1::block_io(&dir, io).map_err(lacking("blkio"))?,
                (_, Controller::V2(dir)) => v2::block_io(&dir, io).map_err(lacking("io"))?,
                _ => return Err(unsupported("blkio", "blockIO limits")),
            }
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.apply_hugepages(limit)?;
        }
        if let Some(network) = resources.network() {
            self.apply_network(network)?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            write(&self.anywhere("rdma", "rdma")?.join("rdma.max"), &rdma(device, limit))?;
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (name, value) in unified {
            self.apply_unified(name, value)?;
        }
        Ok(warnings)
    }

    fn apply_hugepages(&self, limit: &LinuxHugepageLimit) -> Result<()> {
        let size = limit.page_size();
        let number = size.strip_suffix("KB").or_else(|| size.strip_suffix("MB")).or_else(|| size.strip_suffix("GB"));
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            let reason = format!("page size '{size}' is not of the form 64KB, 2MB or 1GB");
            return Err(Error::Invalid { limit: "hugepageLimits".to_owned(), reason });
        }
        let (dir, last, value) = match self.controller("hugetlb") {
            Controller::V1(dir) => (dir, "limit_in_bytes", limit.limit().to_string()),
            Controller::V2(dir) => (self.enabled(dir, "hugetlb")?, "max", or_max(limit.limit())),
            Controller::Missing => return Err(unsupported("hugetlb", "hugepageLimits")),
        };
        let path = dir.join(format!("hugetlb.{size}.{last}"));
        if !path.exists() {
            return Err(unsupported("hugetlb", &format!("hugepageLimits for pages of {size}")));
        }
        write(&path, &value)?;
        // Reservations count apart, since Linux 5.7.
        let reserved = dir.join(format!("hugetlb.{size}.rsvd.{last}"));
        if reserved.exists() { write(&reserved, &value) } else { Ok(()) }
    }

    /// Only v1 has network controllers.
    fn apply_network(&self, network: &LinuxNetwork) -> Result<()> {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            let Controller::V1(dir) = self.controller("net_cls") else {
                return Err(unsupported("net_cls", "network.classID"));
            };
            write(&dir.join("net_cls.classid"), &class.to_string())?;
        }
        for priority in network.priorities().iter().flatten() {
            let Controller::V1(dir) = self.controller("net_prio") else {
                return Err(unsupported("net_prio", "network.priorities"));
            };
            write(&dir.join("net_prio.ifpriomap"), &format!("{} {}", priority.name(), priority.priority()))?;
        }
        Ok(())
    }

    /// `unified`: values for v2 files by name.
    fn apply_unified(&self, name: &str, value: &str) -> Result<()> {
        let invalid = |reason: &str| Error::Invalid { limit: format!("unified '{name}'"), reason: reason.to_owned() };
        if name.contains('/') || !name.contains('.') {
            return Err(invalid("it is not the name of a cgroup v2 file"));
        }
        let Some(v2) = &self.hierarchies.v2 else {
            return Err(invalid("this host has no cgroup v2 hierarchy"));
        };
        let path = v2.point.join(&self.path).join(name);
        if !path.exists() {
            return Err(invalid("the group has no such file; its controller is missing or in a v1 hierarchy"));
        }
        write(&path, value)
    }

    /// The group's directory for a controller whose file is named alike on v1 and v2.
    fn anywhere(&self, controller: &'static str, limit: &str) -> Result<PathBuf> {
        match self.controller(controller) {
            Controller::V1(dir) => Ok(dir),
            Controller::V2(dir) => self.enabled(dir, controller),
            Controller::Missing => Err(unsupported(controller, limit)),
        }
    }

    /// On a hybrid host a v2 controller is enabled when it is first needed: that stops every fork on the machine for a
    /// moment. On a v2 host all are.
    fn enabled(&self, dir: PathBuf, controller: &'static str) -> Result<PathBuf> {
        if let Some(v2) = self.hierarchies.v2.as_ref().filter(|_| !self.hierarchies.v1.is_empty()) {
            v2::enable_controllers(&v2.point, &self.path, Some(controller))?;
        }
        Ok(dir)
    }
}

fn rdma(device: &str, limit: &LinuxRdma) -> String {
    let handles = limit.hca_handles().map(|count| format!(" hca_handle={count}")).unwrap_or_default();
    let objects = limit.hca_objects().map(|count| format!(" hca_object={count}")).unwrap_or_default();
    format!("{device}{handles}{objects}")
}

/// Whether the kernel refused for want of privilege.
fn is_denied(error: &Error) -> bool {
    match error {
        Error::Write { source, .. } | Error::DeviceProgram { source, .. } | Error::Read { source, .. } => {
            source.kind() == std::io::ErrorKind::PermissionDenied || source.raw_os_error() == Some(libc::EROFS)
        }
        _ => false,
    }
}
