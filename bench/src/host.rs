//! The machine that a measurement was taken on, and whether it was quiet.

use std::fs;

use berth_engine::Roots;
use berth_engine::info::{self, Kvm};
use berth_runtime::error::one_line;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A host, as far as it matters to figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What it should be called in a report, where its name does not say enough: `--label`.
    pub label: Option<String>,
    /// The distribution.
    pub system: String,
    /// The kernel's version.
    pub kernel: String,
    /// The processor.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// `v1`, `v2` or `hybrid`.
    pub cgroups: String,
    /// How its KVM translates guest memory: `ept`, `npt`, `shadow`, `pvm` or `none`.
    pub kvm: String,
    /// Why no Linux guest runs, if none does.
    pub kvm_reason: Option<String>,
    /// berth's version.
    pub berth: String,
    /// Whether its binaries were built for speed.
    pub optimised: bool,
}

impl Host {
    /// This one.
    pub fn here(roots: &Roots, label: Option<String>) -> Result<Self> {
        let info = info::info(roots, 0)?;
        let Kvm { translation, reason, .. } = info.kvm;
        Ok(Self {
            name: info.name,
            label: label.map(|label| one_line(&label)),
            system: info.operating_system,
            kernel: info.kernel_version,
            cpu: cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: info.cpus,
            memory: info.memory,
            cgroups: info.cgroup_version.to_owned(),
            kvm: translation,
            kvm_reason: reason,
            berth: info.version.to_owned(),
            optimised: !cfg!(debug_assertions),
        })
    }

    /// What it is called.
    pub fn title(&self) -> &str {
        self.label.as_deref().filter(|label| !label.is_empty()).unwrap_or(&self.name)
    }

    /// What KVM is on it, for a person.
    pub fn kvm_kind(&self) -> &'static str {
        match self.kvm.as_str() {
            "ept" => "KVM with EPT",
            "npt" => "KVM with NPT",
            "shadow" => "KVM with shadow paging",
            "pvm" => "KVM without hardware virtualization (PVM)",
            _ => "no KVM",
        }
    }
}

/// The processor's name in `/proc/cpuinfo`.
fn cpu(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// How busy a host was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks that ran or waited to, over the last minute, before.
    pub before: f64,
    /// And after, which counts what was measured too.
    pub after: f64,
}

/// The load average over the last minute (`proc_loadavg(5)`).
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

impl Load {
    /// Why figures taken under it are not to be trusted much: others wanted more than half of the processors.
    pub fn noise(&self, cpus: usize) -> Option<String> {
        let most = cpus as f64 / 2.0;
        (self.before > most).then(|| {
            format!(
                "noisy host: the load was {:.2} before anything was measured, more than {most} for {cpus} CPUs",
                self.before
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_host_is_called_noisy() {
        assert_eq!(Load { before: 0.9, after: 9.0 }.noise(2), None);
        let noise = Load { before: 1.25, after: 0.0 }.noise(2).unwrap();
        assert!(noise.contains("1.25") && noise.contains("2 CPUs"), "{noise}");
    }

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(cpu("processor\t: 0\nmodel name\t: A 1\nmodel name\t: B\n"), "A 1");
        assert_eq!(cpu(""), std::env::consts::ARCH);
    }
}
