//! Making a sandbox, seen from outside: state, control group, the first process in new namespaces, hooks.
//!
//! ```text
//! maker                               first process
//!   write state.json (no pid)
//!   make the control group
//!   clone3 ─────────────────────────▶ enter namespaces, mount
//!   write state.json (pid)            (born in the v2 group, enters the v1 groups first;
//!   write id maps, map ids of mounts   in a user namespace it waits for Go before it mounts)
//!   hooks prestart, createRuntime
//!   Go ─────────────────────────────▶ cgroup namespace, devices, pivot_root, …
//!      ◀──────────────────── Console  (with a terminal)
//!      ◀────────────────────── Ready  user, capabilities, seccomp
//!   pid file                          wait for the start, or straight on
//!      ◀──────────────── end of file  execve
//! ```

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::Flock;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, LinuxNamespaceType};

use super::channel::{Channel, Message};
use super::id_map::{self, IdMaps};
use super::namespace::{Cloned, Plan, clone3};
use super::rootfs::Outside;
use super::state::{State, StateDir, process_start};
use super::stdio::Stdio;
use super::{Sandbox, console, hooks, init, process};
use crate::bundle::Bundle;
use crate::cgroup::CgroupManager;
use crate::error::{Attempt as _, Error, Result};
use crate::executor::{Executor, Ready};
use crate::seccomp;
use crate::span::{self, Phase};

/// How a sandbox is made.
#[derive(Debug, Default)]
pub struct Options {
    /// Root of the sandbox states.
    pub root: PathBuf,
    /// The new sandbox's id.
    pub id: String,
    /// Where to write the first process's id.
    pub pid_file: Option<PathBuf>,
    /// Where to send the pty's master; needed with `process.terminal` unless the caller takes it ([`Made::console`]).
    pub console_socket: Option<PathBuf>,
    /// Whether the process waits for [`Sandbox::start`].
    pub wait_for_start: bool,
    /// The standard streams; none: the caller's own.
    pub stdio: Option<Stdio>,
    /// Whether the process dies with its maker (a monitor that dies leaves nothing behind).
    pub die_with_maker: bool,
    /// How many descriptors from 3 on the process inherits.
    pub preserve_fds: u32,
    /// Whether to keep the caller's session keyring.
    pub no_new_keyring: bool,
}

/// A sandbox that has just been made.
#[derive(Debug)]
pub struct Made {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its first process.
    pub pid: Pid,
    /// A descriptor of the first process, readable when it ends.
    pub pidfd: OwnedFd,
    /// The pty's master, unless it was sent to `console_socket`.
    pub console: Option<OwnedFd>,
    /// Where its executor counts whom it has ended for want of memory, if it does.
    pub oom: Option<OwnedFd>,
}

/// Makes a sandbox from a bundle. On error nothing of it is left.
pub fn create(bundle: &Bundle, mut options: Options) -> Result<Made> {
    let annotations = bundle.spec.annotations().clone().unwrap_or_default();
    let directory = StateDir::new(&options.root, &options.id)?;
    let prepared = Executor::of(bundle)?.map(|executor| executor.prepare(bundle)).transpose()?;
    let (mut executor, around) = prepared.unzip();
    let oom = executor.as_mut().and_then(|executor| executor.oom.take());
    let bundle = around.as_ref().unwrap_or(bundle);
    let terminal = check_terminal(bundle, &options)?;
    let plan = Plan::new(bundle)?;
    let filter = match bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(profile) => Some(seccomp::compile(profile)?),
        None => None,
    };
    let cgroups_path = bundle.cgroups_path(&options.id);
    let cgroup = CgroupManager::new(&cgroups_path)?;
    let spec_hooks = bundle.spec.hooks().clone().unwrap_or_default();
    let state = State {
        oci_version: bundle.spec.version().clone(),
        id: options.id.clone(),
        pid: None,
        pid_start: 0,
        bundle: bundle.dir.clone(),
        cgroups_path,
        created: Timestamp::now(),
        annotations,
        own_pid_namespace: bundle.has_new(LinuxNamespaceType::Pid),
        poststop: spec_hooks.poststop().clone().unwrap_or_default(),
    };
    directory.create(&options.id)?;
    let lock = directory.lock()?;
    let stdio = options.stdio.take();
    let mut maker = Maker { bundle, options: &options, directory: &directory, cgroup, state, lock, process: None };
    match maker.make(&plan, filter, executor, stdio, terminal) {
        Ok((pidfd, console)) => {
            let pid = maker.process.unwrap_or(Pid::from_raw(0));
            let sandbox = Sandbox::from_parts(directory.clone(), maker.state);
            Ok(Made { sandbox, pid, pidfd, console, oom })
        }
        Err(error) => {
            maker.undo();
            Err(error)
        }
    }
}

fn check_terminal(bundle: &Bundle, options: &Options) -> Result<bool> {
    let process = bundle.spec.process().as_ref();
    let terminal = process.is_some_and(|process| process.terminal().unwrap_or(false));
    if process.is_none() {
        return Err(Error::Invalid(format!("{}/config.json has no `process`", bundle.dir.display())));
    }
    if !terminal && options.console_socket.is_some() {
        return Err(Error::Invalid("a console socket was given, but `process.terminal` is not set".into()));
    }
    Ok(terminal)
}

struct Maker<'a> {
    bundle: &'a Bundle,
    options: &'a Options,
    directory: &'a StateDir,
    cgroup: CgroupManager,
    state: State,
    #[expect(dead_code, reason = "held until the sandbox is made")]
    lock: Flock<File>,
    process: Option<Pid>,
}

impl Maker<'_> {
    fn make(
        &mut self,
        plan: &Plan,
        filter: Option<seccomp::Filter>,
        executor: Option<Ready>,
        stdio: Option<Stdio>,
        terminal: bool,
    ) -> Result<(OwnedFd, Option<OwnedFd>)> {
        let has_executor = executor.is_some();
        self.directory.write(&self.state)?;
        span::mark(Phase::Cgroup);
        self.cgroup.create()?;
        for warning in self.cgroup.apply(&self.bundle.resources(), false)? {
            eprintln!("berth-oci: warning: {warning}");
        }
        span::mark(Phase::Sandbox);
        let start_socket = self.start_socket()?;
        let (outside, inside) = Channel::pair()?;
        let entry = self.cgroup.entry()?;
        let mounts = Outside::open(self.bundle)?;
        let own_pid_namespace = enter_pid_namespace(plan)?;
        let cloned = clone3(plan.first_clone(), Some(&entry));
        let (mut pid, mut pidfd) = match cloned? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                drop(outside);
                if plan.in_between
                    && let Err(error) = plan.go_between(&inside)
                {
                    init::fail(&inside, &error)
                }
                let setup = init::Setup {
                    bundle: self.bundle,
                    plan,
                    filter,
                    executor,
                    entry: &entry,
                    outside: &mounts,
                    stdio,
                    terminal,
                    start_socket,
                    die_with_maker: self.options.die_with_maker,
                    preserve_fds: self.options.preserve_fds,
                    new_keyring: !self.options.no_new_keyring,
                    state: self.hook_state(1, "creating"),
                };
                init::run(setup, inside)
            }
        };
        self.process = Some(pid);
        drop((inside, start_socket));
        if let Some(own) = own_pid_namespace {
            nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWPID)
                .attempt(|| "return to the own pid namespace")?;
        }
        if plan.in_between {
            (pid, pidfd) = self.first_process(&outside)?;
            let _ = waitpid(self.process, None);
            self.process = Some(pid);
        }
        self.state.pid = Some(pid.as_raw());
        self.state.pid_start = process_start(pid.as_raw()).unwrap_or_default();
        self.directory.write(&self.state)?;
        let overlay = match self.bundle.namespace(LinuxNamespaceType::User) {
            Some(_) => self.give_from_outside(pid, &mounts, stdio.as_ref())?,
            None => None,
        };
        drop((mounts, stdio));
        self.run_hooks("prestart", |hooks| hooks.prestart().as_deref())?;
        self.run_hooks("createRuntime", |hooks| hooks.create_runtime().as_deref())?;
        // If it has ended already, it has said why.
        let sent = outside.send_with(&Message::Go, overlay.as_ref().map(AsRawFd::as_raw_fd));
        drop(overlay);
        let console = self.until_ready(&outside, sent)?;
        self.write_pid_file(pid)?;
        let console = self.hand_over(console)?;
        if !self.options.wait_for_start {
            outside.wait_for_exec()?;
            if !has_executor {
                span::mark(Phase::Run);
            }
            self.run_hooks("poststart", |hooks| hooks.poststart().as_deref())?;
        }
        Ok((pidfd, console))
    }

    /// The first process, made by the one in between.
    fn first_process(&self, outside: &Channel) -> Result<(Pid, OwnedFd)> {
        match outside.receive()? {
            Some((Message::Born, Some(pidfd))) => Ok((super::pid_of(&pidfd)?, pidfd)),
            Some((Message::Failed { message, code }, _)) => Err(Error::Process { message, code }),
            _ => Err(self.ended_early()),
        }
    }

    /// Does for a process in a user namespace what it has no right to do; comes back with its root filesystem where that is
    /// an overlay.
    fn give_from_outside(&self, pid: Pid, mounts: &Outside, stdio: Option<&Stdio>) -> Result<Option<OwnedFd>> {
        if let Some(linux) = self.bundle.spec.linux()
            && self.bundle.has_new(LinuxNamespaceType::User)
        {
            let maps = |maps: &Option<Vec<_>>| maps.clone().unwrap_or_default();
            id_map::write(pid, &maps(linux.uid_mappings()), &maps(linux.gid_mappings()))?;
        }
        let maps = IdMaps::of(pid)?;
        maps.give_stdio(stdio)?;
        if let Some(process) = self.bundle.spec.process() {
            process::set_oom_score(process, Some(pid))?;
            process::raise_limits(process, Some(pid))?;
        }
        mounts.finish(self.bundle, pid, &maps)
    }

    /// Listens to the inside until it is set up; the pty's master comes on the way.
    fn until_ready(&self, outside: &Channel, sent: Result<()>) -> Result<Option<OwnedFd>> {
        let mut console = None;
        loop {
            match outside.receive()? {
                Some((Message::Ready, _)) => return Ok(console),
                Some((Message::Console, fd)) => console = fd,
                Some((Message::Failed { message, code }, _)) => return Err(Error::Process { message, code }),
                Some((Message::Go | Message::Born, _)) => {}
                None => {
                    sent?;
                    return Err(self.ended_early());
                }
            }
        }
    }

    fn ended_early(&self) -> Error {
        let id = &self.options.id;
        let why = if self.cgroup.oom_kills() > 0 {
            "for want of memory; raise the memory limit"
        } else {
            "while it was set up"
        };
        Error::Invalid(format!("the first process of container `{id}` was ended {why}"))
    }

    fn hand_over(&self, console: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
        match (&self.options.console_socket, console) {
            (Some(socket), Some(master)) => {
                console::send_master(socket, &master)?;
                Ok(None)
            }
            (_, console) => Ok(console),
        }
    }

    fn start_socket(&self) -> Result<Option<UnixListener>> {
        if !self.options.wait_for_start {
            return Ok(None);
        }
        let path = self.directory.start_socket();
        let listener = super::bind_socket(&path).attempt(|| format!("listen on {}", path.display()))?;
        Ok(Some(listener))
    }

    fn write_pid_file(&self, pid: Pid) -> Result<()> {
        match &self.options.pid_file {
            Some(path) => write_pid_file(path, pid),
            None => Ok(()),
        }
    }

    fn run_hooks(&self, kind: &str, of: impl Fn(&oci_spec::runtime::Hooks) -> Option<&[Hook]>) -> Result<()> {
        let Some(hooks) = self.bundle.spec.hooks().as_ref().and_then(of) else { return Ok(()) };
        let status = if kind == "poststart" { "running" } else { "creating" };
        hooks::run(kind, hooks, &self.hook_state(self.state.pid.unwrap_or_default(), status))
    }

    fn hook_state(&self, pid: i32, status: &str) -> Vec<u8> {
        super::oci_state(&self.state, pid, status)
    }

    fn undo(&self) {
        // What cannot be undone here is found by its record: `delete` or the next sweep removes it.
        if let Some(pid) = self.process {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
        if self.cgroup.kill_all().and_then(|()| self.cgroup.delete()).is_ok() {
            let _ = self.directory.remove();
        }
    }
}

/// Enters the pid namespace named by path, for the children; comes back with the own one, to return to.
fn enter_pid_namespace(plan: &Plan) -> Result<Option<File>> {
    let Some(namespace) = &plan.join_pid else { return Ok(None) };
    let own = File::open("/proc/self/ns/pid").attempt(|| "open the own pid namespace")?;
    nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWPID).attempt(|| "enter the pid namespace")?;
    Ok(Some(own))
}

/// Writes a pid file by rename, as its readers wait for it to appear.
pub(super) fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .attempt(|| format!("write the pid file {}", path.display()))
}
