//! The process that unpacks one layer, or packs layers into a disk: how the store starts it, and its main function.
//!
//! It gets the job as JSON in its one argument, the blob or the tree as standard input, the other files as inherited
//! descriptors whose numbers are in the job, and answers with one JSON document on standard output.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::confine::{Task, confine, detach};
use super::disk::{self, DiskFormat};
use super::{Job, LayerError, Limits, Unpacked, unpack};
use crate::digest::Digest;

/// The hidden command of the program that links this crate; [`unpack_worker_main`] takes the argument after it.
pub const UNPACK_COMMAND: &str = "__unpack";

/// Longest answer read, bytes.
const MAX_ANSWER: u64 = 1 << 16;

/// Where layers are unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpacker {
    /// In a confined process: this program, which must call [`unpack_worker_main`] for [`UNPACK_COMMAND`].
    Process(PathBuf),
    /// In this process, with nothing but the path rules between a layer and the host. For tests.
    InProcess,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::Process(PathBuf::from("/proc/self/exe"))
    }
}

/// The job as the worker gets it; numbers are descriptors.
#[derive(Serialize, Deserialize)]
enum Order {
    /// The blob on standard input becomes a directory.
    Unpack {
        digest: Digest,
        diff_id: Option<Digest>,
        directory: RawFd,
        lowers: Vec<RawFd>,
        gate: Option<RawFd>,
        limits: Limits,
    },
    /// The directory on standard input becomes a disk.
    Pack { disk: RawFd, format: DiskFormat, limits: Limits },
}

#[derive(Serialize, Deserialize)]
struct Answer {
    result: Result<Done, LayerError>,
    /// Walls the kernel could not raise.
    missing: Vec<String>,
}

/// What came of an order.
#[derive(Serialize, Deserialize)]
enum Done {
    Unpacked(Unpacked),
    /// Bytes of the disk.
    Packed(u64),
}

/// An answer to another order than was given.
fn confused() -> LayerError {
    LayerError::Worker("it answers something else than it was asked".to_owned())
}

/// Unpacks a layer where `unpacker` says. `lock` stays held until the worker is gone, whatever becomes of this process.
pub fn run(unpacker: &Unpacker, job: Job<'_>, lock: &OwnedFd) -> Result<Unpacked, LayerError> {
    match unpacker {
        Unpacker::InProcess => unpack(job),
        Unpacker::Process(program) => run_process(program, job, lock),
    }
}

/// Packs `tree`, the root of a mount that is attached nowhere, into the empty file `disk`, where `unpacker` says. `lock` as in
/// [`run`]. Returns the size of the disk, bytes.
pub fn run_pack(
    unpacker: &Unpacker,
    tree: OwnedFd,
    disk: File,
    format: DiskFormat,
    limits: &Limits,
    lock: &OwnedFd,
) -> Result<u64, LayerError> {
    match unpacker {
        Unpacker::InProcess => disk::build(&tree, disk, format, limits),
        Unpacker::Process(program) => {
            let number = disk.as_raw_fd();
            let order = Order::Pack { disk: number, format, limits: limits.clone() };
            match run_order(program, &order, tree.into(), &[number, lock.as_raw_fd()], || drop(disk))? {
                Done::Packed(size) => Ok(size),
                Done::Unpacked(_) => Err(confused()),
            }
        }
    }
}

fn run_process(program: &Path, job: Job<'_>, lock: &OwnedFd) -> Result<Unpacked, LayerError> {
    let directory = detach(job.directory, false).map_err(|error| failed(&error))?;
    let lowers: Vec<RawFd> = job.lowers.iter().map(AsRawFd::as_raw_fd).collect();
    let gate = job.gate.as_ref().map(AsRawFd::as_raw_fd);
    let mut inherited = lowers.clone();
    inherited.extend([directory.as_raw_fd(), lock.as_raw_fd()]);
    inherited.extend(gate);
    let order = Order::Unpack {
        digest: job.digest,
        diff_id: job.diff_id,
        directory: directory.as_raw_fd(),
        lowers,
        gate,
        limits: job.limits,
    };
    match run_order(program, &order, job.blob.into(), &inherited, || drop((directory, job.gate)))? {
        Done::Unpacked(unpacked) => Ok(unpacked),
        Done::Packed(_) => Err(confused()),
    }
}

fn failed(error: &dyn std::fmt::Display) -> LayerError {
    LayerError::Worker(error.to_string())
}

/// Runs a worker that inherits the descriptors `inherited`; `started` is called when it has them.
fn run_order(
    program: &Path,
    order: &Order,
    stdin: Stdio,
    inherited: &[RawFd],
    started: impl FnOnce(),
) -> Result<Done, LayerError> {
    let inherited = inherited.to_vec();
    let mut command = Command::new(program);
    command
        .arg(UNPACK_COMMAND)
        .arg(serde_json::to_string(order).map_err(|error| failed(&error))?)
        .env_clear()
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped());
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls are made; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the signal was asked for.
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            for number in &inherited {
                if libc::fcntl(*number, libc::F_SETFD, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child =
        command.spawn().map_err(|error| LayerError::Worker(format!("cannot start {}: {error}", program.display())))?;
    started();
    let mut text = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut text));
    let status = child.wait().map_err(|error| failed(&error))?;
    read.transpose().map_err(|error| failed(&error))?;
    let answer: Answer = serde_json::from_slice(&text)
        .map_err(|_| LayerError::Worker(format!("{status}, without an answer; is {} berth?", program.display())))?;
    for wall in answer.missing {
        tracing::warn!("layers are unpacked with one wall less: {wall}");
    }
    answer.result
}

/// The worker's main function: `order` is the argument after [`UNPACK_COMMAND`]. To be called first thing, while the
/// process has one thread.
pub fn unpack_worker_main(order: &OsStr) -> ExitCode {
    let mut missing = Vec::new();
    let result = work(order, &mut missing);
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let written = serde_json::to_vec(&Answer { result, missing })
        .map_err(std::io::Error::from)
        .and_then(|text| std::io::stdout().write_all(&text));
    if written.is_ok() { code } else { ExitCode::FAILURE }
}

fn work(order: &OsStr, missing: &mut Vec<String>) -> Result<Done, LayerError> {
    let order: Order = order
        .to_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| LayerError::Worker("this command is for berth itself".to_owned()))?;
    match order {
        Order::Unpack { digest, diff_id, directory, lowers, gate, limits } => {
            let directory = inherit(directory)?;
            let lowers = lowers.into_iter().map(inherit).collect::<Result<Vec<_>, _>>()?;
            let gate = gate.map(inherit).transpose()?.map(File::from);
            let blob = File::from(inherit(0)?);
            let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
            *missing = confine(Task::Unpack, &directory, &lowers)?;
            unpack(Job { blob, digest, diff_id, directory, lowers, gate, limits }).map(Done::Unpacked)
        }
        Order::Pack { disk, format, limits } => {
            let (tree, disk) = (inherit(0)?, File::from(inherit(disk)?));
            *missing = confine(Task::Pack, &tree, &[])?;
            disk::build(&tree, disk, format, &limits).map(Done::Packed)
        }
    }
}

/// Takes over a descriptor that the parent passed on.
fn inherit(number: RawFd) -> Result<OwnedFd, LayerError> {
    // SAFETY: F_GETFD takes no pointer and does no harm on any number.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(LayerError::Worker("this command is for berth itself".to_owned()));
    }
    // SAFETY: the descriptor is open, and the parent passed it for this process alone to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
