//! The whole of a process guest, from its configuration to its exit code.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use berth_runtime::span::{self, Phase};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host;

use super::confine::confine;
use super::files::{Authority, Credentials, Descriptors, OpenFile, Root};
use super::loader::{self, Program};
use super::memory::window::MappedFiles;
use super::outside;
use super::syscalls::futex::Futexes;
use super::syscalls::limits::Limits;
use super::task::alarm::Alarms;
use super::task::table::{MOST_THREADS, Table};
use super::task::{Kernel, Place, gate::Event};
use super::vm::{Vm, VmError, lock};

/// Where a program is looked for when `PATH` is not set.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command to run in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// It and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// The environment, `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// The working directory.
    pub directory: Vec<u8>,
    /// Its niceness.
    pub nice: i32,
}

/// What a guest is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Most {
    /// Most bytes of guest memory.
    pub memory: u64,
    /// Most threads of all processes, as the control group's limit of tasks would count them; none for berth's own limit.
    pub threads: Option<usize>,
}

/// What to run, and where.
#[derive(Debug)]
pub struct Config {
    /// `/dev/kvm`, open.
    pub kvm: OwnedFd,
    /// The root directory, open.
    pub root: OwnedFd,
    /// The first process.
    pub command: Command,
    /// What all of them together are held to.
    pub most: Most,
    /// The host name.
    pub host_name: Vec<u8>,
    /// Where the guest is asked from outside.
    pub control: Option<UnixListener>,
    /// Counts whom the VMM has ended for want of memory.
    pub oom: Option<OwnedFd>,
    /// Writes every call to standard error.
    pub trace: bool,
}

/// Why a guest did not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The VM cannot be set up.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// `/dev/kvm` is of no use.
    #[error(transparent)]
    Kvm(#[from] host::Error),
    /// Something of the set-up failed.
    #[error("cannot {0}: {1}")]
    Setup(&'static str, Errno),
    /// The VMM's own rights cannot be given up.
    #[error("cannot confine the VMM: {0}")]
    Confine(#[from] berth_runtime::confine::Error),
    /// The command is not there.
    #[error("cannot execute {0}: no such file in the image")]
    NotFound(String),
    /// The command is there but cannot be executed.
    #[error("cannot execute {0}: {1}")]
    NotExecutable(String, Errno),
}

impl RunError {
    /// The exit code, as a shell gives it: 127 not found, 126 not executable, 125 berth itself.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(..) => 126,
            _ => 125,
        }
    }
}

/// Runs a guest to the end of its first process and gives its exit code, 128+n for signal n.
pub fn run(config: Config) -> Result<i32, RunError> {
    let started = Instant::now();
    // First of all: to process 1 of a sandbox one that comes earlier is lost.
    let held = hold_signals().map_err(setup("hold signals back"))?;
    // While there is no other thread.
    let authority = Authority::new().map_err(setup("start the broker"))?;
    span::mark(Phase::VmCreate);
    let kvm = host::kvm(config.kvm)?;
    let vm = Arc::new(Vm::new(&kvm, config.most.memory)?);
    let who = Arc::new(authority.own().clone());
    let kernel = Arc::new(Kernel {
        vm,
        mapped: MappedFiles::default(),
        root: Root::new(config.root, authority),
        devices: devices(),
        own: File::open("/proc/self").ok().map(Into::into),
        table: Mutex::new(Table::new(config.most.threads())),
        changed: Event::default(),
        alarms: Alarms::default(),
        futexes: Futexes::default(),
        host_name: config.host_name.into(),
        limits: Limits::own(),
        oom: config.oom,
        started,
        trace: config.trace,
    });
    let mut streams = Vec::new();
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        streams.push(stream.try_clone_to_owned().ok());
    }
    // Modes are the guest's to mask; a broken pipe is the guest's signal.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // Orphans of `exec` and brokers are nobody's to wait for.
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    span::mark(Phase::Executor);
    confine()?;
    span::mark(Phase::Load);
    let pid = kernel.run(config.command, who, streams)?;
    forward_signals(&kernel, held, pid).map_err(setup("wait for signals"))?;
    if let Some(listener) = config.control {
        outside::serve(kernel.clone(), listener).map_err(setup("listen on the control socket"))?;
    }
    Ok(kernel.wait(pid).map_err(setup("run the first process"))?.exit_code())
}

fn setup(what: &'static str) -> impl FnOnce(Errno) -> RunError {
    move |error| RunError::Setup(what, error)
}

impl Most {
    /// How many threads that is.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or(MOST_THREADS)
    }
}

impl Kernel {
    /// Runs a command that is nobody's child: finds it, loads it, and gives the id of its process.
    pub fn run(
        self: &Arc<Self>,
        command: Command,
        who: Arc<Credentials>,
        streams: impl IntoIterator<Item = Option<OwnedFd>>,
    ) -> Result<i32, RunError> {
        let Command { arguments, environment, directory, nice } = command;
        let top = self.root.top().map_err(setup("keep the root open"))?;
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
        let directory = self
            .root
            .open(&who, &top, &directory, flags, nix::sys::stat::Mode::empty())
            .map_err(setup("enter the working directory"))?;
        let name = arguments.first().cloned().unwrap_or_default();
        let shown = String::from_utf8_lossy(&name).into_owned();
        let (file, path) = find(&self.root, &who, &directory, &name, &environment).map_err(|error| match error {
            Errno::ENOENT | Errno::ENOTDIR => RunError::NotFound(shown.clone()),
            other => RunError::NotExecutable(shown.clone(), other),
        })?;
        let program = Program { file, path, arguments: arguments.clone(), environment };
        let loaded = loader::load(&self.vm, &self.mapped, &self.root, program, &who).map_err(|error| match error {
            // What it asks to be loaded by is not there.
            Errno::ENOENT => RunError::NotFound(shown),
            other => RunError::NotExecutable(shown, other),
        })?;
        let mut descriptors = Descriptors::new(self.limits.descriptors());
        for (number, stream) in streams.into_iter().enumerate() {
            if let Some(stream) = stream {
                let _ = descriptors.set(number as u64, OpenFile::new(stream, "/dev/console"), false);
            }
        }
        let place = Place { directory: Arc::new(directory), umask: 0o022 };
        self.begin(loaded, (arguments, nice), descriptors, place, who).map_err(setup("run the process"))
    }
}

/// Keeps back what is passed on later. Threads begun from here on inherit this; one alone takes the signals.
fn hold_signals() -> super::Result<SigSet> {
    let set: SigSet = FORWARDED.into_iter().collect();
    set.thread_block()?;
    Ok(set)
}

/// Passes on what the VMM is sent, and has been sent since it is held back: to the first process, and what a terminal sends to
/// the group in its foreground.
fn forward_signals(kernel: &Arc<Kernel>, held: SigSet, first: i32) -> super::Result<()> {
    let kernel = kernel.clone();
    let pass_on = move || {
        while let Ok(signal) = held.wait() {
            lock(&kernel.table).pass_on(first, signal as i32);
        }
    };
    let started = std::thread::Builder::new().stack_size(64 << 10).spawn(pass_on);
    started.map(|_| ()).map_err(|_| Errno::EAGAIN)
}

/// What is passed on.
pub const FORWARDED: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGURG,
];

/// Finds a command as execvp(3) does.
fn find(
    root: &Root,
    who: &Credentials,
    directory: &OpenFile,
    name: &[u8],
    environment: &[Vec<u8>],
) -> super::Result<(OwnedFd, Vec<u8>)> {
    if name.contains(&b'/') {
        let path = super::files::join(&directory.path, name);
        return root.open_program(who, &path).map(|file| (file, path));
    }
    let path = environment.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut failure = Errno::ENOENT;
    for part in path.split(|&byte| byte == b':') {
        let path = super::files::join(part, name);
        match root.open_program(who, &path) {
            Ok(file) => return Ok((file, path)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The files of `/dev` that programs count on, opened while the host's are in reach.
fn devices() -> Vec<(Vec<u8>, OwnedFd)> {
    ["null", "zero", "full", "random", "urandom"]
        .into_iter()
        .filter_map(|name| {
            let path = format!("/dev/{name}");
            let file = File::options().read(true).write(true).open(&path).ok()?;
            Some((path.into_bytes(), file.into()))
        })
        .collect()
}
