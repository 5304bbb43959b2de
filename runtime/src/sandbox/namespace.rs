//! Namespaces: which are made with the first process, and which are entered (`namespaces(7)`, `clone(2)`).

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxNamespaceType;

use super::channel::{Channel, Message};
use crate::bundle::Bundle;
use crate::cgroup::Entry;
use crate::error::{Attempt as _, Result};

/// The `CLONE_NEW…` flag of a kind of namespace.
pub(super) fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        // linux/sched.h: CLONE_NEWTIME, which nix has no name for.
        LinuxNamespaceType::Time => CloneFlags::from_bits_retain(0x80),
    }
}

/// The namespaces a bundle wants: those to make and those to enter.
#[derive(Debug)]
pub(super) struct Plan {
    /// Made by `clone3`. The cgroup namespace is not among them: it is made once the process is in its control group,
    /// which then is the namespace's root.
    pub clone: CloneFlags,
    /// Whether a cgroup namespace is made later.
    pub new_cgroup: bool,
    /// Entered by the first process, the user namespace last.
    pub join: Vec<(LinuxNamespaceType, File)>,
    /// Entered by the maker before `clone3`, since it counts for children only.
    pub join_pid: Option<File>,
    /// Whether a process in between enters the namespaces to enter and makes those to make: there is a user namespace,
    /// in which one has no right to enter the host's, and which has to be there before those that shall belong to it.
    pub in_between: bool,
}

impl Plan {
    /// Reads the plan off the bundle and opens the namespaces to enter.
    pub(super) fn new(bundle: &Bundle) -> Result<Self> {
        let mut plan =
            Self { clone: CloneFlags::empty(), new_cgroup: false, join: Vec::new(), join_pid: None, in_between: false };
        for namespace in bundle.namespaces() {
            let kind = namespace.typ();
            match namespace.path() {
                None if kind == LinuxNamespaceType::Cgroup => plan.new_cgroup = true,
                None => plan.clone |= flag(kind),
                Some(path) => {
                    let file = File::open(path).attempt(|| format!("open the {kind} namespace {}", path.display()))?;
                    if kind == LinuxNamespaceType::Pid {
                        plan.join_pid = Some(file);
                    } else {
                        plan.join.push((kind, file));
                    }
                }
            }
        }
        plan.join.sort_by_key(|(kind, _)| *kind == LinuxNamespaceType::User);
        plan.in_between = bundle.namespace(LinuxNamespaceType::User).is_some() && !plan.join.is_empty();
        Ok(plan)
    }

    /// The namespaces that the maker's child is born in.
    pub(super) fn first_clone(&self) -> CloneFlags {
        if self.in_between { CloneFlags::empty() } else { self.clone }
    }

    /// Enters the namespaces named by path.
    pub(super) fn enter(&self) -> Result<()> {
        for (kind, file) in &self.join {
            setns(file, flag(*kind)).attempt(|| format!("enter the {kind} namespace"))?;
        }
        Ok(())
    }

    /// In the process in between: enters the namespaces named by path, makes a child of the maker in the new ones, tells the
    /// maker of it and ends. Comes back in that child.
    pub(super) fn go_between(&self, channel: &Channel) -> Result<()> {
        self.enter()?;
        match clone3(self.clone | CloneFlags::CLONE_PARENT, None)? {
            Cloned::Child => Ok(()),
            Cloned::Parent { pidfd, .. } => {
                channel.send_with(&Message::Born, Some(pidfd.as_raw_fd()))?;
                // SAFETY: `_exit` ends this process without running what belongs to the maker it was copied from.
                unsafe { libc::_exit(0) }
            }
        }
    }
}

/// What `clone3` made.
pub(super) enum Cloned {
    /// In the new process.
    Child,
    /// In the maker: the process and a descriptor of it.
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Makes a process in new namespaces (`clone3(2)`), without sharing memory, as `fork` does.
///
/// The process is born in the version 2 group of `entry`; the version 1 groups it enters itself.
pub(super) fn clone3(flags: CloneFlags, entry: Option<&Entry>) -> Result<Cloned> {
    let mut pidfd: i32 = -1;
    // SAFETY: `clone_args` is plain integers, for which all-zero is the documented "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags.bits() as u64 | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    // A child of the caller's parent ends with the caller's own signal.
    if !flags.contains(CloneFlags::CLONE_PARENT) {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = entry.and_then(Entry::clone_into) {
        arguments.flags |= Entry::CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no new stack: the child goes on with a copy of this single-threaded process.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match Errno::result(result) {
        Ok(0) => Ok(Cloned::Child),
        // SAFETY: on success the kernel has stored a new descriptor in `pidfd`.
        Ok(pid) => Ok(Cloned::Parent { pid: Pid::from_raw(pid as i32), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        Err(errno) => Err(errno).attempt(|| "make a process of the sandbox (clone3)"),
    }
}
