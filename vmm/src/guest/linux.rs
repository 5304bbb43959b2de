//! A Linux guest as a sandbox's executor: what `berth-oci` hands over becomes a machine, its first process, and a relay
//! between the two.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, IntoRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use berth_runtime::executor::{ExecHandover, Handover};
use berth_runtime::span::{self, Phase};
use nix::sys::signalfd::SignalFd;
use serde::{Deserialize, Serialize};

use super::PORT;
use super::client::{self, ClientError};
use super::frame::Exit;
use super::start::{Refused, Start, Volume};
use crate::devices::rate::RateLimit;
use crate::host;
use crate::machine::config::{BalloonConfig, DiskConfig, VsockConfig};
use crate::machine::control::Stop;
use crate::machine::{self, Machine, MachineConfig, Report, descriptor};

/// Where in the sandbox's root processes of the same sandbox reach the guest.
pub const SOCKET: &str = "/guest";
/// Where in the sandbox's root the machine answers questions, see [`control_socket`](crate::machine::control_socket).
pub const CONTROL_SOCKET: &str = "/control";
/// The guest's context id: the first that is free (`vsock(7)`). A VMM of its own serves each guest, so all may have the same.
const CID: u64 = 3;
/// Names of the files that are handed over.
pub mod files {
    /// `/dev/kvm`.
    pub const KVM: &str = "kvm";
    /// The kernel.
    pub const KERNEL: &str = "kernel";
    /// The initramfs.
    pub const INITRAMFS: &str = "initramfs";
    /// The image's disk.
    pub const ROOT: &str = "root";
}
/// Longest file of the host that is copied into the guest, bytes.
const MAX_COPIED: u64 = 1 << 20;

/// [`Handover::settings`] of a Linux guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Bytes of guest memory.
    pub memory: u64,
    /// How many vCPUs.
    pub vcpus: u8,
    /// Whether the guest's kernel tells what it does, on standard error.
    pub console: bool,
}

/// Why there is no exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are not those of a Linux guest.
    #[error("the settings of the microVM cannot be read: {0}")]
    Settings(#[from] serde_json::Error),
    /// A file that every guest needs was not handed over.
    #[error("the microVM was not given its {0}")]
    Missing(&'static str),
    /// What is asked for cannot be given to a guest.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Another machine has the disk, or locks do not work on it.
    #[error("cannot lock the disk {disk}, which one microVM can write to, or several read: {error}")]
    Lock {
        /// Its place on the host.
        disk: String,
        /// Why.
        error: TryLockError,
    },
    /// The machine could not be made or served.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// Something of the host's side.
    #[error("cannot {attempt}: {error}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// The process in the guest could not be run to its end.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The machine ended before its process.
    #[error("the microVM ended before its command: {0}")]
    Ended(String),
}

/// Makes the machine, runs the first process in it, and ends with it.
pub fn start(handover: Handover) -> Result<Exit, Error> {
    let settings: Settings = serde_json::from_value(handover.settings)?;
    let mut files = handover.files;
    span::take(files.remove(span::FILE));
    let (start, volumes) = Start::of_spec(&handover.spec, |mount| copied(&mut files, mount.destination()))?;
    let listener = UnixListener::bind(SOCKET).map_err(|error| Error::Host { attempt: "listen on /guest", error })?;
    let control = UnixListener::bind(CONTROL_SOCKET);
    let control = control.map_err(|error| Error::Host { attempt: "listen on /control", error })?;
    let mut config = config(&settings, &mut files, listener, control)?;
    for volume in volumes {
        config.disks.push(disk(&mut files, volume)?);
    }
    // Before there are threads, which take over the signal mask.
    let signals = client::signals()?;
    let (report, result) = serve(Machine::new(&config)?, start, signals)?;
    match result {
        Err(ClientError::Lost) => Err(Error::Ended(why(report.stop))),
        other => Ok(other?),
    }
}

/// Runs a machine and its first process, which this process is to whoever looks from outside.
pub fn serve(
    machine: Machine,
    process: Start,
    signals: SignalFd,
) -> Result<(Report, Result<Exit, ClientError>), Error> {
    let stream = machine.listen(PORT)?.ok_or(Error::Missing("vsock device"))?;
    let control = machine.control().clone();
    let running = machine.start()?;
    span::mark(Phase::Boot);
    // Its thread is confined as those of the machine are.
    let relay = thread::spawn(move || {
        let result = client::run(stream.into(), process, &signals);
        // The init has synced before it said the exit code.
        control.stop(Stop::Asked);
        result
    });
    let report = running.wait()?;
    Ok((report, relay.join().unwrap_or(Err(ClientError::Lost))))
}

/// Runs one more process in the guest of this sandbox.
pub fn enter(handover: ExecHandover) -> Result<Exit, Error> {
    let signals = client::signals()?;
    let start = Start { process: handover.process, user: handover.user, ..Start::default() };
    Ok(client::run(client::connect(Path::new(SOCKET), PORT)?, start, &signals)?)
}

fn config(
    settings: &Settings,
    files: &mut BTreeMap<String, RawFd>,
    listener: UnixListener,
    control: UnixListener,
) -> Result<MachineConfig, Error> {
    let mut take = |name: &'static str| files.remove(name).ok_or(Error::Missing(name));
    let copy = |stream: io::Stderr| stream.as_fd().try_clone_to_owned().map(IntoRawFd::into_raw_fd);
    let console = settings.console.then(|| copy(io::stderr())).transpose();
    let console = console.map_err(|error| Error::Host { attempt: "copy standard error", error })?;
    Ok(MachineConfig {
        kvm: take(files::KVM)?,
        kernel: take(files::KERNEL)?,
        initramfs: Some(take(files::INITRAMFS)?),
        command_line: String::new(),
        protocol: None,
        memory: settings.memory,
        vcpus: settings.vcpus,
        console,
        report: None,
        control: Some(control.into_raw_fd()),
        disks: vec![DiskConfig {
            file: take(files::ROOT)?,
            read_only: true,
            serial: files::ROOT.to_owned(),
            rate: RateLimit::default(),
        }],
        nets: Vec::new(),
        vsock: Some(VsockConfig { cid: CID, listener: Some(listener.into_raw_fd()), path: None }),
        balloon: Some(BalloonConfig { target: 0, deflate_on_oom: true }),
        terminal: None,
    })
}

/// A disk that was handed over under the name of its place in the guest. A second machine that writes to it would destroy what is
/// on it, so it is locked for as long as this one has it.
fn disk(files: &mut BTreeMap<String, RawFd>, volume: Volume) -> Result<DiskConfig, Error> {
    let number = files.remove(&*volume.destination.to_string_lossy()).ok_or(Error::Missing("a volume's disk"))?;
    let file = File::from(descriptor::take(number, "a volume's disk")?);
    let locked = if volume.is_read_only { file.try_lock_shared() } else { file.try_lock() };
    locked.map_err(|error| Error::Lock { disk: volume.source.display().to_string(), error })?;
    let rate = RateLimit::default();
    Ok(DiskConfig { file: file.into_raw_fd(), read_only: volume.is_read_only, serial: volume.serial, rate })
}

/// A file of the host that was handed over under the name of its place in the guest.
fn copied(files: &mut BTreeMap<String, RawFd>, destination: &Path) -> io::Result<String> {
    let name = destination.to_string_lossy();
    let number = files.remove(&*name).ok_or_else(|| io::Error::other("it was not handed over"))?;
    let file = descriptor::take(number, "a file for the guest").map_err(io::Error::other)?;
    let mut content = Vec::new();
    File::from(file).take(MAX_COPIED).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Why a machine ended.
pub fn why(stop: Stop) -> String {
    match stop {
        Stop::PowerOff => "the guest turned itself off".to_owned(),
        Stop::Asked => "it was asked to".to_owned(),
        Stop::Reset => "the guest reset the machine".to_owned(),
        Stop::Panic => "the guest's kernel panicked".to_owned(),
        Stop::TripleFault => "the guest ended by a triple fault".to_owned(),
        Stop::Failed(why) => match host::runs_linux() {
            Err(error) => format!("{why}: {error}"),
            Ok(()) => why,
        },
    }
}
