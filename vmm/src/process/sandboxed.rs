//! The process guest as a sandbox's executor: its root filesystem, user and limits are those the sandbox gives it.

use std::fs::File;
use std::os::unix::net::UnixStream;

use berth_runtime::executor::{CONTROL, ExecHandover, Handover, OOM};
use berth_runtime::span;
use oci_spec::runtime::Process;

use super::outside::client;
use super::{Command, Config, RunError, run};
use crate::machine::descriptor;

/// Under this name `/dev/kvm` is handed over.
const KVM: &str = "kvm";

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
    /// One more process in it did not run.
    #[error(transparent)]
    Enter(#[from] client::Error),
}

impl Error {
    /// The exit code, as a shell gives it: 127 not found, 126 not executable, 125 berth itself.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Run(error) => error.exit_code(),
            Self::Enter(client::Error::Failed { code, .. }) => *code,
            _ => 125,
        }
    }
}

/// Runs the sandbox's first process; [`Handover::settings`] are [`Most`].
pub fn start(handover: Handover) -> Result<i32, Error> {
    let process = handover.spec.process().clone().ok_or(Error::Missing("command"))?;
    let mut files = handover.files;
    span::take(files.remove(span::FILE));
    let mut take = |name: &'static str| {
        let number = files.remove(name).ok_or(Error::Missing(name))?;
        Ok::<_, Error>(descriptor::take(number, name)?)
    };
    Ok(run(Config {
        kvm: take(KVM)?,
        root: File::open("/").map_err(Error::Root)?.into(),
        command: command(&process),
        most: serde_json::from_value(handover.settings)?,
        host_name: rustix::system::uname().nodename().to_bytes().to_vec(),
        control: Some(take(CONTROL)?.into()),
        oom: Some(take(OOM)?),
        trace: false,
    })?)
}

/// Runs one more process in the guest of this sandbox.
pub fn enter(mut handover: ExecHandover) -> Result<i32, Error> {
    let number = handover.files.remove(CONTROL).ok_or(Error::Missing(CONTROL))?;
    let stream: UnixStream = descriptor::take(number, CONTROL)?.into();
    Ok(client::run(&stream, command(&handover.process))?)
}

fn command(process: &Process) -> Command {
    let bytes = |words: Option<Vec<String>>| words.unwrap_or_default().into_iter().map(String::into_bytes).collect();
    let mut environment: Vec<Vec<u8>> = bytes(process.env().clone());
    if !environment.iter().any(|entry| entry.starts_with(b"HOME=")) {
        // `berth-oci` has looked it up.
        environment.extend(std::env::var("HOME").map(|home| format!("HOME={home}").into_bytes()));
    }
    Command {
        arguments: bytes(process.args().clone()),
        environment,
        directory: process.cwd().as_os_str().as_encoded_bytes().to_vec(),
        nice: own_niceness(),
    }
}

/// The niceness of this process, which is that of whoever started it.
pub fn own_niceness() -> i32 {
    // SAFETY: a plain system call; it cannot fail for the process itself.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}
