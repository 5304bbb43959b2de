//! Another process in a sandbox that runs: it joins the namespaces and the control group of the first, and gives up the
//! same rights.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::channel::{Channel, Message};
use super::id_map::IdMaps;
use super::namespace::{Cloned, clone3};
use super::stdio::{self, Stdio};
use super::{Sandbox, create, init, open_pidfd, process};
use crate::bundle::{Bundle, check_process};
use crate::error::{Attempt as _, Error, Result};
use crate::executor::{Executor, Ready, Root};
use crate::seccomp;

/// How a further process is made.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// The process; with `terminal` a pty is made.
    pub process: Process,
    /// The user by name or number, looked up inside, instead of `process.user`.
    pub user: Option<String>,
    /// Where to write its id.
    pub pid_file: Option<PathBuf>,
    /// The standard streams; none: the caller's own.
    pub stdio: Option<Stdio>,
    /// How many descriptors from 3 on the process inherits.
    pub preserve_fds: u32,
}

/// A further process.
#[derive(Debug)]
pub struct Executed {
    /// Its id.
    pub pid: Pid,
    /// The pty's master, with a terminal.
    pub console: Option<OwnedFd>,
}

/// Runs another process in the sandbox made of `bundle`; comes back when the command runs.
pub fn exec(sandbox: &Sandbox, bundle: &Bundle, mut options: ExecOptions) -> Result<Executed> {
    let id = &sandbox.state.id;
    check_process(&options.process)?;
    let Some(first) = sandbox.pid() else {
        return Err(Error::Invalid(format!("cannot exec in container `{id}`: it is not running")));
    };
    let mut executor = None;
    let mut confined_by_profile = true;
    if let Some(other) = Executor::of(bundle)? {
        confined_by_profile = other.root == Root::Image;
        // With the image's files it is the user itself; with none, whoever knows the image looks the user up.
        let user = if confined_by_profile { None } else { options.user.take() };
        let (ready, process) = other.prepare_exec(&options.process, user)?;
        options.process = process;
        executor = Some(ready);
    }
    let profile = bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = match profile.filter(|_| confined_by_profile) {
        Some(profile) => Some(seccomp::compile(profile)?),
        None => None,
    };
    let attempt = || format!("enter container `{id}`");
    let pidfd = open_pidfd(first).attempt(attempt)?;
    if sandbox.pid() != Some(first) {
        return Err(Error::Invalid(format!("cannot exec in container `{id}`: it is not running")));
    }
    let namespaces =
        bundle.namespaces().iter().map(|namespace| super::namespace::flag(namespace.typ())).collect::<CloneFlags>();
    let entry = sandbox.cgroup()?.entry()?;
    let (outside, inside) = Channel::pair()?;
    // Only a child can be in another pid namespace, so that one is entered before the clone.
    let own = std::fs::File::open("/proc/self/ns/pid").attempt(attempt)?;
    let pid_namespace = namespaces & CloneFlags::CLONE_NEWPID;
    if !pid_namespace.is_empty() {
        setns(&pidfd, pid_namespace).attempt(attempt)?;
    }
    let (pid, _pidfd) = match clone3(CloneFlags::empty(), Some(&entry))? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop(outside);
            let result = entry
                .enter()
                .attempt(|| "enter the control group")
                .and_then(|()| options.stdio.as_ref().map_or(Ok(()), stdio::connect))
                .and_then(|()| give_from_outside(first, namespaces, &options))
                .and_then(|()| {
                    become_process(&pidfd, namespaces & !pid_namespace, &options, filter, executor, &inside)
                });
            match result {
                Err(error) => init::fail(&inside, &error),
                Ok(never) => match never {},
            }
        }
    };
    drop((inside, options.stdio.take()));
    if !pid_namespace.is_empty() {
        setns(own, CloneFlags::CLONE_NEWPID).attempt(|| "return to the own pid namespace")?;
    }
    let mut console = None;
    while let Some((message, fd)) = outside.receive()? {
        match message {
            Message::Console => console = fd,
            Message::Failed { message, code } => {
                let _ = nix::sys::wait::waitpid(pid, None);
                return Err(Error::Process { message, code });
            }
            Message::Go | Message::Born | Message::Ready => {}
        }
    }
    if let Some(path) = &options.pid_file {
        create::write_pid_file(path, pid)?;
    }
    Ok(Executed { pid, console })
}

/// Does what the process has no right to do any more once it is in a user namespace. `first`: the sandbox's first process.
fn give_from_outside(first: i32, namespaces: CloneFlags, options: &ExecOptions) -> Result<()> {
    process::set_oom_score(&options.process, None)?;
    if !namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        return Ok(());
    }
    process::raise_limits(&options.process, None)?;
    IdMaps::of(Pid::from_raw(first))?.give_stdio(options.stdio.as_ref())
}

fn become_process(
    pidfd: &OwnedFd,
    namespaces: CloneFlags,
    options: &ExecOptions,
    filter: Option<seccomp::Filter>,
    executor: Option<Ready>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    // Processes of the sandbox must not reach into this one while it still holds the host's rights.
    nix::sys::prctl::set_dumpable(false).attempt(|| "hide from the sandbox's processes")?;
    nix::unistd::setsid().attempt(|| "start a session")?;
    setns(pidfd, namespaces).attempt(|| "enter the sandbox's namespaces")?;
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        init::become_root()?;
    }
    init::join_session_keyring();
    if options.process.terminal().unwrap_or(false) {
        init::open_terminal(&options.process, channel, false)?;
    } else {
        stdio::complete(options.stdio.as_ref())?;
    }
    let prepared = process::prepare(&options.process, options.user.as_deref(), None, false, filter, executor)?;
    init::launch(&options.process, &prepared, channel, options.preserve_fds, false, false)
}
