//! `berth info` and `berth version`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::info::{self, Kvm};
use berth_images::Store;
use clap::Args;
use serde_json::json;

use super::Context;
use crate::output::{self, Format};

/// Describe the host and what berth has on it
#[derive(Debug, Args)]
pub struct Info {}

impl Info {
    pub fn run(context: &Context) -> Result<ExitCode> {
        let images = Store::open(context.roots.data())?.list()?.len();
        let info = info::info(&context.roots, images)?;
        if context.format == Format::Json {
            output::json(&info)?;
            return Ok(ExitCode::SUCCESS);
        }
        let (running, stopped) = (info.containers_running, info.containers_stopped);
        let lines = [
            ("Version", info.version.to_owned()),
            ("Containers", format!("{} ({running} running, {stopped} stopped)", info.containers)),
            ("Images", info.images.to_string()),
            ("Volumes", info.volumes.to_string()),
            ("Data root", info.data_root),
            ("State root", info.state_root),
            ("Storage", info.driver.to_owned()),
            ("Cgroups", info.cgroup_version.to_owned()),
            ("Kernel", info.kernel_version),
            ("System", info.operating_system),
            ("Architecture", info.architecture.to_owned()),
            ("CPUs", info.cpus.to_string()),
            ("Memory", output::bytes(info.memory)),
            ("KVM", kvm(&info.kvm)),
            ("Host", info.name),
        ];
        output::lines(lines.iter().map(|(name, value)| format!("{name:<13} {value}")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What the host's KVM does with guest memory, and what that allows.
fn kvm(kvm: &Kvm) -> String {
    let how = match kvm.translation.as_str() {
        "ept" => "EPT: the processor translates guest memory",
        "npt" => "NPT: the processor translates guest memory",
        "shadow" => "shadow paging: KVM translates guest memory in tables of its own",
        "pvm" => "PVM: no hardware virtualization, KVM translates guest memory in tables of its own",
        _ => "none",
    };
    match &kvm.reason {
        None => format!("{how}; microVMs run with up to {} vCPUs", kvm.max_vcpus),
        Some(reason) => format!("{how}; {reason}"),
    }
}

/// Print the version
#[derive(Debug, Args)]
pub struct Version {}

impl Version {
    pub fn run(context: &Context) -> Result<ExitCode> {
        let (version, architecture) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
        match context.format {
            Format::Json => {
                output::json(&json!({ "Version": version, "Os": "linux", "Arch": architecture }))?;
            }
            Format::Table => output::print(&format!("berth {version} linux/{architecture}\n"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
