//! The last steps before the image's process: limits, identity, capabilities, `no_new_privs`, seccomp, and finding and
//! executing the command. All of it irrevocable, in the order that needs the fewest rights at each step.

use std::ffi::{CString, OsStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use caps::{CapSet, CapsHashSet};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};
use rustix::fs::{Mode, OFlags};

use super::rootfs::Root;
use super::user::{self, Identity};
use crate::error::{Attempt as _, Error, Result};
use crate::executor::Ready;
use crate::seccomp;

/// `PATH` of a process whose environment has none (`confstr(_CS_PATH)` with the administrator's directories, as docker's).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything about the process that was worked out before it gives up its rights.
#[derive(Debug)]
pub struct Prepared {
    identity: Identity,
    environment: Vec<CString>,
    arguments: Vec<CString>,
    program: Program,
    filter: Option<seccomp::Filter>,
}

/// What is executed.
#[derive(Debug)]
enum Program {
    Path(CString),
    Executor(Ready),
}

impl Prepared {
    /// Whether an executor takes the command's place.
    pub fn is_executor(&self) -> bool {
        matches!(self.program, Program::Executor(_))
    }
}

/// Looks up the user, prepares working directory and environment and finds the command, inside the new root and still as root.
///
/// `user` and `groups`: what to look up instead of and besides `process.user` (the annotations). `make_directory`: a
/// working directory that is missing is made. `executor`: is executed in place of the command.
pub fn prepare(
    process: &Process,
    user: Option<&str>,
    groups: Option<&str>,
    make_directory: bool,
    filter: Option<seccomp::Filter>,
    executor: Option<Ready>,
) -> Result<Prepared> {
    let mut identity = if let Some(user) = user {
        user::look_up(user)?
    } else {
        let uid = process.user().uid();
        Identity { uid, gid: process.user().gid(), groups: Vec::new(), home: user::home(uid) }
    };
    identity.groups.extend(process.user().additional_gids().iter().flatten());
    if let Some(groups) = groups {
        identity.groups.extend(user::look_up_groups(groups)?);
    }
    let mut known = std::collections::HashSet::new();
    identity.groups.retain(|&group| known.insert(group));
    let mut environment: Vec<String> = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", identity.home.as_deref().unwrap_or("/")));
    }
    enter_working_directory(process.cwd(), make_directory)?;
    let arguments = process.args().clone().unwrap_or_default();
    let program = if let Some(executor) = executor {
        Program::Executor(executor)
    } else {
        let path = find_program(&arguments[0], &environment, &identity)?;
        Program::Path(CString::new(path.as_os_str().as_bytes()).map_err(|_| zero_byte(&arguments[0]))?)
    };
    Ok(Prepared {
        identity,
        environment: environment.iter().map(|entry| c_string(entry)).collect::<Result<_>>()?,
        arguments: arguments.iter().map(|argument| c_string(argument)).collect::<Result<_>>()?,
        program,
        filter,
    })
}

/// Sets what a process passes on and gives up rights: afterwards it is as privileged as the image's process.
pub fn confine(process: &Process, prepared: &Prepared) -> Result<()> {
    let identity = &prepared.identity;
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit)?;
    }
    give_stdio_to(identity.uid);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(process.user().umask().unwrap_or(0o022)));
    let capabilities = process.capabilities().clone().unwrap_or_default();
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    drop_bounding(&capabilities)?;
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes while that is there (seccomp(2)).
    if !no_new_privileges {
        prepared.filter.as_ref().map_or(Ok(()), seccomp::install)?;
    }
    become_user(identity)?;
    set_capabilities(&capabilities, identity.uid)?;
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().attempt(|| "set no_new_privs")?;
        prepared.filter.as_ref().map_or(Ok(()), seccomp::install)?;
    }
    Ok(())
}

/// Sets how readily the kernel ends a process, or this one, when memory is short. In a user namespace nobody has the right to.
pub(super) fn set_oom_score(process: &Process, pid: Option<Pid>) -> Result<()> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    let path = pid.map_or_else(|| "/proc/self/oom_score_adj".to_owned(), |pid| format!("/proc/{pid}/oom_score_adj"));
    std::fs::write(path, score.to_string()).attempt(|| format!("set the OOM score adjustment to {score}"))
}

/// Raises the hard limits of a process, or of this one, to those it is going to set for itself in a user namespace, where it
/// has no right to raise any.
pub(super) fn raise_limits(process: &Process, pid: Option<Pid>) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ()) as libc::__rlimit_resource_t;
        let pid = pid.map_or(0, Pid::as_raw);
        let mut own = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one `rlimit`, which `own` is; no new limit is given.
        let read = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut own) };
        Errno::result(read).attempt(|| format!("read the limit {:?}", limit.typ()))?;
        if limit.hard() > own.rlim_max {
            own.rlim_max = limit.hard();
            // SAFETY: the kernel reads one `rlimit`, which `own` is; the old limit is not asked for.
            let set = unsafe { libc::prlimit(pid, resource, &raw const own, std::ptr::null_mut()) };
            Errno::result(set).attempt(|| cannot_limit(limit))?;
        }
    }
    Ok(())
}

/// Lets the program have the descriptors that an executor is promised.
pub(super) fn pass_on(prepared: &Prepared) -> Result<()> {
    match &prepared.program {
        Program::Path(_) => Ok(()),
        Program::Executor(executor) => executor.pass_on(),
    }
}

/// Executes the command, or the executor in its place; comes back only with the error.
pub fn execute(prepared: &Prepared) -> Error {
    let (arguments, environment) = (&prepared.arguments, &prepared.environment);
    match &prepared.program {
        Program::Path(path) => {
            let Err(errno) = nix::unistd::execve(path, arguments, environment);
            exec_error(&path.to_string_lossy(), errno)
        }
        Program::Executor(executor) => executor.execute(arguments, environment),
    }
}

/// The error of a command that cannot be executed, with the code a shell gives it.
fn exec_error(program: &str, errno: Errno) -> Error {
    let (why, code) = match errno {
        Errno::ENOENT => ("no such file or directory (or its interpreter is missing)".to_owned(), 127),
        Errno::ENOEXEC => (
            "exec format error: it is no program for this machine; is the image for another architecture?".to_owned(),
            126,
        ),
        Errno::EACCES => ("permission denied".to_owned(), 126),
        other => (other.desc().to_owned(), 126),
    };
    Error::Process { message: format!("exec `{program}`: {why}"), code }
}

/// Enters the working directory, making it where it is missing if `make` says so. What cannot be entered as root may be entered as the
/// user (a network filesystem), so that failure is left to the command.
fn enter_working_directory(cwd: &Path, make: bool) -> Result<()> {
    let attempt = || format!("enter the working directory {}", cwd.display());
    match nix::unistd::chdir(cwd) {
        Ok(()) => {}
        Err(Errno::ENOENT) if make => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = Root(rustix::fs::open("/", flags, Mode::empty()).attempt(|| "open the root")?);
            root.make_directories(cwd)?;
            nix::unistd::chdir(cwd).attempt(attempt)?;
        }
        Err(errno) => return Err(errno).attempt(attempt),
    }
    // A directory outside the root (reached through a leaked descriptor, CVE-2024-21626) has no path in it.
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(Error::Invalid(format!("the working directory {} lies outside the root filesystem", cwd.display()))),
    }
}

/// Finds the command as a shell would, with the process's own `PATH`.
fn find_program(name: &str, environment: &[String], identity: &Identity) -> Result<PathBuf> {
    if name.contains('/') {
        return match executable(Path::new(name), identity) {
            Ok(()) => Ok(name.into()),
            Err(errno) => Err(exec_error(name, errno)),
        };
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match executable(&candidate, identity) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(exec_error(name, Errno::EACCES));
    }
    let message = format!("exec `{name}`: executable file not found in $PATH ({path})");
    Err(Error::Process { message, code: 127 })
}

/// Whether a file is there and may be executed by somebody; the kernel has the last word at `execve`.
fn executable(path: &Path, identity: &Identity) -> nix::Result<()> {
    let stat = nix::sys::stat::stat(path)?;
    let kind = nix::sys::stat::SFlag::from_bits_truncate(stat.st_mode) & nix::sys::stat::SFlag::S_IFMT;
    if kind == nix::sys::stat::SFlag::S_IFDIR {
        return Err(Errno::EACCES);
    }
    let bit = if identity.uid == 0 {
        0o111
    } else if stat.st_uid == identity.uid {
        0o100
    } else if stat.st_gid == identity.gid || identity.groups.contains(&stat.st_gid) {
        0o010
    } else {
        0o001
    };
    if stat.st_mode & bit == 0 { Err(Errno::EACCES) } else { Ok(()) }
}

fn become_user(identity: &Identity) -> Result<()> {
    // The capabilities the process keeps are set right after; the change of user must not clear them all first.
    nix::sys::prctl::set_keepcaps(true).attempt(|| "keep capabilities")?;
    let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match setgroups(&groups) {
        // A user namespace may forbid it (user_namespaces(7), "/proc/pid/setgroups"); nothing to drop then.
        Err(Errno::EPERM) if groups.is_empty() => {}
        other => other.attempt(|| "set the supplementary groups")?,
    }
    let gid = Gid::from_raw(identity.gid);
    setresgid(gid, gid, gid).attempt(|| format!("become group {gid}"))?;
    let uid = Uid::from_raw(identity.uid);
    setresuid(uid, uid, uid).attempt(|| format!("become user {uid}"))?;
    nix::sys::prctl::set_keepcaps(false).attempt(|| "let go of capabilities")
}

/// A user's standard streams can be opened again by path (`/dev/stdout`) only if they are the user's.
fn give_stdio_to(uid: u32) {
    for fd in 0..3 {
        // SAFETY: descriptors 0 to 2 are open: the maker put them there.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let Ok(stat) = nix::sys::stat::fstat(fd) else { continue };
        if stat.st_uid != uid && is_pipe_or_tty(&stat) {
            // A stream of the caller's that cannot change hands still works.
            let _ = nix::unistd::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// Whether a standard stream may be given to another user: files and `/dev/null` stay whose they are.
pub(super) fn can_change_hands(stream: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(stream).is_ok_and(|stat| is_pipe_or_tty(&stat))
}

fn is_pipe_or_tty(stat: &libc::stat) -> bool {
    stat.st_rdev != nix::sys::stat::makedev(1, 3)
        && stat.st_mode & libc::S_IFMT != libc::S_IFREG
        && stat.st_mode & libc::S_IFMT != libc::S_IFDIR
}

fn capability_set(names: Option<&std::collections::HashSet<Capability>>) -> CapsHashSet {
    names.into_iter().flatten().filter_map(|name| format!("CAP_{name}").parse().ok()).collect()
}

fn drop_bounding(capabilities: &LinuxCapabilities) -> Result<()> {
    let keep = capability_set(capabilities.bounding().as_ref());
    for capability in caps::all().difference(&keep) {
        match caps::drop(None, CapSet::Bounding, *capability) {
            Ok(()) => {}
            // A capability that this kernel does not know cannot be had either.
            Err(_) if !caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) => {}
            Err(error) => return Err(capability_error("drop a capability from the bounding set", &error)),
        }
    }
    Ok(())
}

/// Sets the capability sets. As `execve` would for a user that is not root, such a user's permitted and effective sets
/// hold only what is ambient. Only what is permitted and inheritable can be ambient (capabilities(7)); the rest of the ambient
/// set is left out: `runc spec` writes one without any inheritable capability.
fn set_capabilities(capabilities: &LinuxCapabilities, uid: u32) -> Result<()> {
    let inheritable = capability_set(capabilities.inheritable().as_ref());
    let permitted = capability_set(capabilities.permitted().as_ref());
    let mut ambient = capability_set(capabilities.ambient().as_ref());
    ambient.retain(|capability| inheritable.contains(capability) && permitted.contains(capability));
    let (permitted, effective) = if uid == 0 {
        (permitted, capability_set(capabilities.effective().as_ref()))
    } else {
        (ambient.clone(), ambient.clone())
    };
    // The bounding set of the caller may lack some: what nobody has cannot be given.
    let have = caps::read(None, CapSet::Permitted).map_err(|error| capability_error("read capabilities", &error))?;
    let within = |set: &CapsHashSet| -> CapsHashSet { set.intersection(&have).copied().collect() };
    for (kind, set) in
        [(CapSet::Inheritable, &inheritable), (CapSet::Effective, &effective), (CapSet::Permitted, &permitted)]
    {
        caps::set(None, kind, &within(set)).map_err(|error| capability_error("set capabilities", &error))?;
    }
    caps::clear(None, CapSet::Ambient).map_err(|error| capability_error("clear ambient capabilities", &error))?;
    for capability in within(&ambient) {
        caps::raise(None, CapSet::Ambient, capability)
            .map_err(|error| capability_error("raise an ambient capability", &error))?;
    }
    Ok(())
}

fn capability_error(attempt: &str, error: &caps::errors::CapsError) -> Error {
    Error::Invalid(format!("{attempt}: {error}"))
}

fn set_limit(limit: &PosixRlimit) -> Result<()> {
    setrlimit(resource(limit.typ()), limit.soft(), limit.hard()).attempt(|| cannot_limit(limit))
}

fn cannot_limit(limit: &PosixRlimit) -> String {
    format!(
        "set the limit {:?} to {}:{} (a hard limit above this process's own needs CAP_SYS_RESOURCE)",
        limit.typ(),
        limit.soft(),
        limit.hard()
    )
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| zero_byte(text))
}

fn zero_byte(text: impl AsRef<OsStr>) -> Error {
    Error::Invalid(format!("`{}` contains a zero byte", text.as_ref().to_string_lossy()))
}
