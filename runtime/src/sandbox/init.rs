//! Making a sandbox, seen from inside: the first process builds its own world and then becomes the image's process.

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{setgid, sethostname, setsid, setuid};
use oci_spec::runtime::{LinuxNamespaceType, Process};
use rustix::io::{FdFlags, fcntl_setfd};

use super::channel::{Channel, Message};
use super::namespace::Plan;
use super::process::{self, Prepared};
use super::rootfs::Outside;
use super::stdio::{self, Stdio};
use super::{console, hooks, init_process, rootfs};
use crate::annotations;
use crate::bundle::Bundle;
use crate::cgroup::Entry;
use crate::error::{Attempt as _, Error, Result};
use crate::executor::Ready;
use crate::relay;
use crate::seccomp;
use crate::span::{self, Phase};

/// What the first process needs.
pub(super) struct Setup<'a> {
    pub bundle: &'a Bundle,
    pub plan: &'a Plan,
    pub filter: Option<seccomp::Filter>,
    /// What is executed in place of the command.
    pub executor: Option<Ready>,
    pub entry: &'a Entry,
    pub outside: &'a Outside,
    pub stdio: Option<Stdio>,
    pub terminal: bool,
    /// Present when the process waits for its start.
    pub start_socket: Option<UnixListener>,
    pub die_with_maker: bool,
    pub preserve_fds: u32,
    pub new_keyring: bool,
    /// For hooks that run in here.
    pub state: Vec<u8>,
}

/// Becomes the image's process, or reports why not and ends.
pub(super) fn run(setup: Setup<'_>, channel: Channel) -> ! {
    let mut channel = channel;
    let error = match become_process(setup, &mut channel) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    fail(&channel, &error)
}

/// Reports an error to whoever listens and ends.
pub(super) fn fail(channel: &Channel, error: &Error) -> ! {
    let _ = channel.send(&Message::from(error));
    // SAFETY: `_exit` ends this process without running what belongs to the maker it was copied from.
    unsafe { libc::_exit(error.exit_code()) }
}

fn become_process(mut setup: Setup<'_>, channel: &mut Channel) -> Result<std::convert::Infallible> {
    let bundle = setup.bundle;
    let process = bundle.spec.process().as_ref().ok_or_else(|| Error::Invalid("`process` is missing".into()))?;
    span::mark(Phase::Cgroup);
    // First of all, while nothing has been made: what follows counts against the sandbox's limits.
    setup.entry.enter().attempt(|| "enter the control group")?;
    span::mark(Phase::Sandbox);
    // As long as it is being made, the process goes when its maker goes.
    die_with_parent(true)?;
    setsid().attempt(|| "start a session")?;
    if let Some(stdio) = &setup.stdio {
        stdio::connect(stdio)?;
    }
    let own_users = bundle.namespace(LinuxNamespaceType::User).is_some();
    let mut overlay = None;
    if own_users {
        overlay = wait_for_go(channel)?;
        become_root()?;
        // The change of user has cleared the setting.
        die_with_parent(true)?;
    } else {
        process::set_oom_score(process, None)?;
    }
    if !setup.plan.in_between {
        setup.plan.enter()?;
    }
    if setup.new_keyring {
        join_session_keyring();
    }
    span::mark(Phase::Mounts);
    let root = rootfs::mount_all(bundle, setup.outside, overlay.as_ref())?;
    drop(overlay);
    if bundle.has_new(LinuxNamespaceType::Network) {
        span::mark(Phase::Network);
        bring_up_loopback()?;
    }
    span::mark(Phase::Sandbox);
    set_names(bundle)?;
    if !own_users {
        wait_for_go(channel)?;
    }
    if setup.plan.new_cgroup {
        unshare(CloneFlags::CLONE_NEWCGROUP).attempt(|| "make a cgroup namespace")?;
    }
    span::mark(Phase::Mounts);
    rootfs::finish(bundle, &root, setup.outside)?;
    if let Some(create_container) = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref()) {
        hooks::run("createContainer", create_container, &setup.state)?;
    }
    rootfs::change_root(&root)?;
    drop(root);
    span::mark(Phase::Sandbox);
    set_sysctls(bundle)?;
    if setup.terminal {
        open_terminal(process, channel, true)?;
    } else {
        stdio::complete(setup.stdio.as_ref())?;
    }
    rootfs::seal(bundle)?;
    let prepared = process::prepare(
        process,
        bundle.annotation(annotations::USER),
        bundle.annotation(annotations::GROUPS),
        true,
        setup.filter.take(),
        setup.executor.take(),
    )?;
    if setup.start_socket.is_some() {
        // The maker may end as soon as it knows that everything is ready.
        die_with_parent(false)?;
    }
    channel.send(&Message::Ready)?;
    if let Some(listener) = setup.start_socket.take() {
        // Whoever starts the process listens from here on.
        *channel = wait_for_start(&listener)?;
    }
    if let Some(start_container) = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref()) {
        hooks::run("startContainer", start_container, &setup.state)?;
    }
    let init = bundle.annotation(annotations::INIT) == Some("true");
    launch(process, &prepared, channel, setup.preserve_fds, setup.die_with_maker, init)
}

/// Gives up all rights the image's process does not have, and executes it.
pub(super) fn launch(
    process: &Process,
    prepared: &Prepared,
    channel: &Channel,
    preserve_fds: u32,
    die_with_maker: bool,
    init: bool,
) -> Result<std::convert::Infallible> {
    close_descriptors(preserve_fds)?;
    process::pass_on(prepared)?;
    process::confine(process, prepared)?;
    // A change of user has cleared the setting.
    die_with_parent(die_with_maker)?;
    reset_signals()?;
    if init {
        init_process::fork_command(channel)?;
    }
    span::mark(if prepared.is_executor() { Phase::Executor } else { Phase::Load });
    Err(process::execute(prepared))
}

/// Opens a pty in the sandbox, sends its master out and takes the slave as terminal.
pub(super) fn open_terminal(process: &Process, channel: &Channel, console: bool) -> Result<()> {
    let pty = console::open_pty()?;
    channel.send_with(&Message::Console, Some(pty.master.as_raw_fd()))?;
    let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    let size = process.console_size().map(|size| (clamp(size.height()), clamp(size.width())));
    pty.adopt(size, console)
}

fn die_with_parent(yes: bool) -> Result<()> {
    let signal = yes.then_some(nix::sys::signal::Signal::SIGKILL);
    nix::sys::prctl::set_pdeathsig(signal).attempt(|| "tie the process to its maker")
}

/// Waits until everything outside is ready. If the maker has gone, so does this process. Comes back with the root filesystem
/// where it was mounted outside.
fn wait_for_go(channel: &Channel) -> Result<Option<OwnedFd>> {
    match channel.receive()? {
        Some((Message::Go, overlay)) => Ok(overlay),
        _ => Err(Error::Invalid("the maker of the sandbox has gone away".into())),
    }
}

/// Waits for `start`: it connects, and learns over the connection whether the process could be executed.
fn wait_for_start(listener: &UnixListener) -> Result<Channel> {
    let (connection, _) = listener.accept().attempt(|| "wait for the start")?;
    Ok(Channel::from_fd(connection.into()))
}

/// In a new user namespace the process is nobody until it says which mapped user it is.
pub(super) fn become_root() -> Result<()> {
    setgid(0.into()).attempt(|| "become group 0 of the user namespace")?;
    setuid(0.into()).attempt(|| "become user 0 of the user namespace")
}

/// The caller's keyring must not be readable inside (`keyrings(7)`): a new, empty session keyring takes its place.
pub(super) fn join_session_keyring() {
    // Kernels without keyrings, and users over their quota of keyrings, have nothing to hide in one.
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING (1) with a null name makes an anonymous keyring; no memory is touched.
    unsafe { libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<libc::c_char>()) };
}

fn set_names(bundle: &Bundle) -> Result<()> {
    if let Some(hostname) = bundle.spec.hostname() {
        if bundle.namespace(LinuxNamespaceType::Uts).is_none() {
            return Err(Error::Invalid("a hostname needs a UTS namespace of its own".into()));
        }
        sethostname(hostname).attempt(|| format!("set the hostname `{hostname}`"))?;
    }
    if let Some(name) = bundle.spec.domainname() {
        // SAFETY: the pointer and length belong to one live string.
        let result = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
        Errno::result(result).attempt(|| format!("set the domain name `{name}`"))?;
    }
    Ok(())
}

/// A new network namespace has a loopback interface that is down (`netdevice(7)`).
fn bring_up_loopback() -> Result<()> {
    let attempt = || "bring up the loopback interface";
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .attempt(attempt)?;
    // SAFETY: `ifreq` is a plain C structure for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is the structure SIOCSIFFLAGS reads, and it names an interface.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result).map(drop).attempt(attempt)
}

/// Writes `linux.sysctl` through the sandbox's own `/proc` (`sysctl(8)`).
fn set_sysctls(bundle: &Bundle) -> Result<()> {
    let sysctls = bundle.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    for (key, value) in sysctls.into_iter().flatten() {
        if key.contains("..") || key.starts_with('/') {
            return Err(Error::Invalid(format!("`{key}` is no sysctl")));
        }
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .attempt(|| format!("set the sysctl {key} to `{value}`"))?;
    }
    Ok(())
}

/// No descriptor of the host reaches the image's process but those it was promised.
fn close_descriptors(preserve: u32) -> Result<()> {
    for fd in 3..3 + preserve {
        // SAFETY: the caller promised these descriptors to the process; a missing one is reported, not used.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd as i32) };
        fcntl_setfd(fd.as_fd(), FdFlags::empty()).attempt(|| "pass on a descriptor (--preserve-fds)")?;
    }
    // Among them the channel, which this process still writes errors to.
    relay::close_on_exec_from(3 + preserve)
}

/// Signals start out as a freshly logged-in process has them: none blocked, none ignored (`execve(2)` keeps both).
fn reset_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    // What the kernel takes as `struct sigaction`: handler (0 is the default one), flags, restorer, mask.
    let default = [0_u64; 4];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        // The C library keeps two real-time signals to itself, so this asks the kernel.
        // SAFETY: `default` is as large as the structure that is read; the default disposition runs no code of ours.
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<libc::c_void>(), 8)
        };
        Errno::result(result).attempt(|| format!("reset signal {number}"))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).attempt(|| "unblock signals")
}
