//! The whole of a process guest, from its configuration to its exit code.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;

use crate::host;

use super::confine::confine;
use super::files::{Authority, Credentials, Descriptors, OpenFile, Root};
use super::loader::{self, Program};
use super::memory::window::MappedFiles;
use super::syscalls::futex::Futexes;
use super::syscalls::limits::Limits;
use super::task::alarm::Alarms;
use super::task::signal::Info;
use super::task::table::{Status, Table};
use super::task::{Kernel, Place, gate::Event};
use super::vm::{Vm, VmError, lock};

/// Where a program is looked for when `PATH` is not set.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run, and where.
#[derive(Debug)]
pub struct Config {
    /// `/dev/kvm`, open.
    pub kvm: OwnedFd,
    /// The root directory, open.
    pub root: OwnedFd,
    /// The command and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// The environment, `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// The working directory.
    pub directory: Vec<u8>,
    /// Most bytes of guest memory.
    pub memory: u64,
    /// Most threads of all processes at once.
    pub threads: usize,
    /// The host name.
    pub host_name: Vec<u8>,
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
    let setup = |what| move |error| RunError::Setup(what, error);
    // While there is no other thread.
    let authority = Authority::new().map_err(setup("start the broker"))?;
    let kvm = host::kvm(config.kvm)?;
    let vm = Arc::new(Vm::new(&kvm, config.memory)?);
    let top = config.root.try_clone().map_err(|_| setup("keep the root open")(Errno::ENFILE))?;
    let top = OpenFile::new(top, "/");
    let root = Root::new(config.root, authority);
    let who = root.authority.own();
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    let directory = root
        .open(who, &top, &config.directory, flags, nix::sys::stat::Mode::empty())
        .map_err(setup("enter the working directory"))?;

    let name = config.arguments.first().cloned().unwrap_or_default();
    let shown = String::from_utf8_lossy(&name).into_owned();
    let (file, path) = find(&root, who, &directory, &name, &config.environment).map_err(|error| match error {
        Errno::ENOENT | Errno::ENOTDIR => RunError::NotFound(shown.clone()),
        other => RunError::NotExecutable(shown.clone(), other),
    })?;
    let mapped = MappedFiles::default();
    let arguments = config.arguments.clone();
    let program = Program { file, path, arguments: config.arguments, environment: config.environment };
    let loaded = loader::load(&vm, &mapped, &root, program, who).map_err(|error| match error {
        // What it asks to be loaded by is not there.
        Errno::ENOENT => RunError::NotFound(shown),
        other => RunError::NotExecutable(shown, other),
    })?;

    let limits = Limits::own();
    let mut descriptors = Descriptors::new(limits.descriptors());
    let streams = [
        std::io::stdin().as_fd().try_clone_to_owned(),
        std::io::stdout().as_fd().try_clone_to_owned(),
        std::io::stderr().as_fd().try_clone_to_owned(),
    ];
    for (number, stream) in streams.into_iter().enumerate() {
        if let Ok(fd) = stream {
            let _ = descriptors.set(number as u64, OpenFile::new(fd, "/dev/console"), false);
        }
    }
    let kernel = Arc::new(Kernel {
        vm,
        mapped,
        root,
        devices: devices(),
        own: File::open("/proc/self").ok().map(Into::into),
        table: Mutex::new(Table::new(config.threads)),
        changed: Event::default(),
        alarms: Alarms::default(),
        futexes: Futexes::default(),
        host_name: config.host_name.into(),
        started,
        trace: config.trace,
    });
    // Modes are the guest's to mask; a broken pipe is the guest's signal.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // Orphans of `exec` and the broker are nobody's to wait for.
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    confine()?;
    forward_signals(&kernel).map_err(setup("wait for signals"))?;
    let place = Place { directory: Arc::new(directory), umask: 0o022 };
    let status =
        kernel.run_first(loaded, arguments, descriptors, place, limits).map_err(setup("run the first process"))?;
    Ok(match status {
        Status::Exited(code) => i32::from(code),
        Status::Killed(signal) => 128 + i32::from(signal),
    })
}

/// Passes on what the VMM is sent: to the first process, and what a terminal sends to the group in its foreground.
fn forward_signals(kernel: &Arc<Kernel>) -> super::Result<()> {
    let mut set = SigSet::empty();
    for signal in FORWARDED {
        set.add(signal);
    }
    // Threads begun from here on inherit this; the one below is the only one to take them.
    set.thread_block()?;
    let kernel = kernel.clone();
    let pass_on = move || {
        while let Ok(signal) = set.wait() {
            let mut table = lock(&kernel.table);
            let first = table.processes.keys().next().copied();
            let targets = match signal {
                Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTSTP | Signal::SIGWINCH => table.group(table.foreground),
                _ => first.into_iter().collect(),
            };
            for pid in targets {
                table.send_from_outside(pid, Info::kernel(signal as i32));
            }
        }
    };
    let started = std::thread::Builder::new().stack_size(64 << 10).spawn(pass_on);
    started.map(|_| ()).map_err(|_| Errno::EAGAIN)
}

/// What is passed on.
const FORWARDED: [Signal; 10] = [
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
    ["null", "zero", "full", "random", "urandom", "tty"]
        .into_iter()
        .filter_map(|name| {
            let path = format!("/dev/{name}");
            let file = File::options().read(true).write(true).open(&path).ok()?;
            Some((path.into_bytes(), file.into()))
        })
        .collect()
}
