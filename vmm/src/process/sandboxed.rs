//! The process guest as a sandbox's executor: its root filesystem, user and limits are those the sandbox gives it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::RawFd;

use berth_runtime::executor::{ExecHandover, Handover};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use super::task::table::MOST_THREADS;
use super::{Config, RunError, run};
use crate::machine::descriptor;

/// Under this name `/dev/kvm` is handed over.
const KVM: &str = "kvm";

/// [`Handover::settings`] of a process guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Most bytes of guest memory.
    pub memory: u64,
    /// Most threads of all processes, as the control group's limit of tasks would count them; none for berth's own limit.
    pub threads: Option<usize>,
}

/// Why there is no exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are not those of a process guest.
    #[error("the settings of the microVM cannot be read: {0}")]
    Settings(#[from] serde_json::Error),
    /// Something that every guest needs was not handed over.
    #[error("the microVM was not given its {0}")]
    Missing(&'static str),
    /// What was handed over is not open.
    #[error(transparent)]
    Machine(#[from] crate::machine::Error),
    /// The sandbox's root cannot be opened.
    #[error("cannot open the sandbox's root: {0}")]
    Root(std::io::Error),
    /// The guest did not run.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the sandbox's first process.
pub fn start(handover: Handover) -> Result<i32, Error> {
    let process = handover.spec.process().clone().ok_or(Error::Missing("command"))?;
    guest(&process, handover.files, handover.settings)
}

/// Runs one more process: in a VM of its own, on the same files.
pub fn enter(handover: ExecHandover) -> Result<i32, Error> {
    guest(&handover.process, handover.files, handover.settings)
}

fn guest(process: &Process, mut files: BTreeMap<String, RawFd>, settings: serde_json::Value) -> Result<i32, Error> {
    let settings: Settings = serde_json::from_value(settings)?;
    let kvm = files.remove(KVM).ok_or(Error::Missing("/dev/kvm"))?;
    let name = rustix::system::uname();
    let bytes = |words: Option<Vec<String>>| words.unwrap_or_default().into_iter().map(String::into_bytes).collect();
    let mut environment: Vec<Vec<u8>> = bytes(process.env().clone());
    if !environment.iter().any(|entry| entry.starts_with(b"HOME=")) {
        // `berth-oci` has looked it up.
        environment.extend(std::env::var("HOME").map(|home| format!("HOME={home}").into_bytes()));
    }
    Ok(run(Config {
        kvm: descriptor::take(kvm, "/dev/kvm")?,
        root: File::open("/").map_err(Error::Root)?.into(),
        arguments: bytes(process.args().clone()),
        environment,
        directory: process.cwd().as_os_str().as_encoded_bytes().to_vec(),
        memory: settings.memory,
        threads: settings.threads.unwrap_or(MOST_THREADS),
        host_name: name.nodename().to_bytes().to_vec(),
        trace: false,
    })?)
}
