//! The walls round the worker process, so that one taken over by a hostile layer can write that layer (or the disk
//! made from it) and nothing else:
//!
//! - its root is a detached mount of the directory it works on, so no path and no `..` leads further;
//! - the layers below, and a tree that is only read, are read-only mounts;
//! - Landlock allows that directory, and reading the layers below;
//! - it has only the capabilities that its task takes, and `no_new_privs`;
//! - seccomp leaves the system calls its task takes: no sockets, no programs, no tracing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::fs::Mode;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::LayerError;

/// What the worker is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Fills its root directory.
    Unpack,
    /// Reads its root directory and writes to a file that is open.
    Pack,
}

impl Task {
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Unpack => CAPABILITIES,
            // Files that only their owners may read.
            Self::Pack => CapabilitySet::DAC_READ_SEARCH,
        }
    }

    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Self::Unpack => AccessFs::from_all(LANDLOCK),
            Self::Pack => AccessFs::from_read(LANDLOCK),
        }
    }

    fn system_calls(self) -> impl Iterator<Item = i64> {
        let writing = if self == Self::Unpack { WRITING } else { &[] };
        READING.iter().chain(writing).copied()
    }
}

/// What unpacking takes: owners, foreign directories, modes and times of foreign files, set-id bits, devices, file
/// capabilities.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// The newest Landlock version used; on older kernels what they have is used.
const LANDLOCK: ABI = ABI::V5;

/// A clone of the directory's mount that is attached nowhere, so that `..` ends at the directory.
/// Without the privilege for that, the directory itself.
pub fn detach(directory: OwnedFd, read_only: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = match open_tree(&directory, "", flags) {
        Ok(clone) => clone,
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => return Ok(directory),
        Err(error) => return Err(error),
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, the attributes live through the call and their size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(clone) } else { Err(last_error()) }
}

fn last_error() -> rustix::io::Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error)
}

/// Raises the walls round this thread and the threads it starts, with `directory` as their root. Says which the kernel could
/// not raise.
pub fn confine(task: Task, directory: &OwnedFd, lowers: &[BorrowedFd<'_>]) -> Result<Vec<String>, LayerError> {
    let failed = |wall: &str, reason: &dyn std::fmt::Display| LayerError::Worker(format!("cannot {wall}: {reason}"));
    let mut missing = Vec::new();
    rustix::process::umask(Mode::empty());
    rustix::process::fchdir(directory).map_err(|error| failed("enter the layer's directory", &error))?;
    match rustix::process::chroot(".") {
        Ok(()) => {}
        Err(rustix::io::Errno::PERM) => {
            missing.push("it may not change its root directory".to_owned());
        }
        Err(error) => return Err(failed("change the root directory", &error)),
    }
    set_no_new_privs(true).map_err(|error| failed("set no_new_privs", &error))?;
    let status = landlock(task, directory, lowers).map_err(|error| failed("set Landlock rules", &error))?;
    if status == RulesetStatus::NotEnforced {
        missing.push("the kernel has no Landlock".to_owned());
    }
    drop_capabilities(task.capabilities()).map_err(|error| failed("drop capabilities", &error))?;
    let filter = filter(task).map_err(|error| failed("build the seccomp filter", &error))?;
    seccompiler::apply_filter(&filter).map_err(|error| failed("set the seccomp filter", &error))?;
    Ok(missing)
}

fn landlock(
    task: Task,
    directory: &OwnedFd,
    lowers: &[BorrowedFd<'_>],
) -> Result<RulesetStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .create()?
        .add_rule(PathBeneath::new(directory.as_fd(), task.access()))?;
    for lower in lowers {
        rules = rules.add_rule(PathBeneath::new(lower.as_fd(), AccessFs::from_read(LANDLOCK)))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn drop_capabilities(wanted: CapabilitySet) -> rustix::io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    let kept = held.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

fn filter(task: Task) -> Result<BpfProgram, Box<dyn std::error::Error>> {
    let only = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        task.system_calls().map(|number| (number, Vec::new())).collect();
    // A thread's own file mode mask, not a namespace.
    rules.insert(libc::SYS_unshare, vec![only(0, libc::CLONE_FS as u64)?]);
    let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, errno, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

const READING: &[i64] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_umask,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Threads, and the end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prlimit64,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const WRITING: &[i64] = &[
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rustix::fs::{CWD, OFlags, ResolveFlags, openat, openat2};
    use rustix::io::Errno;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn packing_changes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "content").unwrap();
        // Writable as a mount, so that it is the walls that keep it as it is.
        let tree = detach(open(temp.path()), false).unwrap();
        std::thread::spawn(move || {
            super::super::own_umask().unwrap();
            assert_eq!(confine(Task::Pack, &tree, &[]).unwrap(), Vec::<String>::new());
            let open = |path: &str, flags: OFlags| openat(&tree, path, flags | OFlags::CLOEXEC, Mode::RUSR);
            assert!(open("file", OFlags::RDONLY).is_ok());
            assert_eq!(open("file", OFlags::WRONLY).unwrap_err(), Errno::ACCESS);
            assert_eq!(open("new", OFlags::WRONLY | OFlags::CREATE).unwrap_err(), Errno::ACCESS);
            assert_eq!(rustix::fs::mkdirat(&tree, "new", Mode::RWXU).unwrap_err(), Errno::PERM);
            assert_eq!(rustix::fs::unlinkat(&tree, "file", rustix::fs::AtFlags::empty()).unwrap_err(), Errno::PERM);
        })
        .join()
        .unwrap();
        assert_eq!(fs::read_to_string(temp.path().join("file")).unwrap(), "content");
    }

    /// The walls stand round one thread here, so the rest of the test program stays as it is.
    #[test]
    fn nothing_but_the_layer_is_within_reach() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["own", "lower", "other"] {
            fs::create_dir(temp.path().join(name)).unwrap();
            fs::write(temp.path().join(name).join("file"), name).unwrap();
        }
        let own = detach(open(&temp.path().join("own")), false).unwrap();
        let lower = detach(open(&temp.path().join("lower")), true).unwrap();
        let other = open(&temp.path().join("other"));
        let outside = temp.path().join("other/file");
        let (tell, told) = std::sync::mpsc::channel();
        let (leave, go_on) = std::sync::mpsc::channel::<()>();
        let confined = std::thread::spawn(move || {
            super::super::own_umask().unwrap();
            assert_eq!(confine(Task::Unpack, &own, &[lower.as_fd()]).unwrap(), Vec::<String>::new());
            let read = |fd: &OwnedFd, path: &str| openat(fd, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let write = |fd: &OwnedFd, path: &str| {
                openat(fd, path, OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR)
            };
            assert!(read(&own, "file").is_ok());
            assert!(write(&own, "new").is_ok());
            assert!(read(&lower, "file").is_ok());
            assert!(matches!(write(&lower, "file"), Err(Errno::ROFS | Errno::ACCESS)));
            assert!(fs::read(&outside).is_err());
            assert!(fs::read("/etc/passwd").is_err());
            // Not even a directory that was left open by mistake.
            assert!(matches!(read(&other, "file"), Err(Errno::ACCESS)));
            let up = openat2(&own, "../../..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty());
            let up = rustix::fs::fstat(up.unwrap()).unwrap();
            let here = rustix::fs::fstat(&own).unwrap();
            assert_eq!((up.st_dev, up.st_ino), (here.st_dev, here.st_ino));
            let socket = std::net::TcpStream::connect("127.0.0.1:9").unwrap_err();
            assert_eq!(socket.raw_os_error(), Some(libc::EPERM));
            assert!(std::process::Command::new("/bin/true").status().is_err());
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            // Until the test has had its look.
            assert!(go_on.recv().is_err());
        });
        if let Ok(thread) = told.recv() {
            let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            for name in ["CapEff:", "CapPrm:"] {
                let held = u64::from_str_radix(&field(name), 16).unwrap();
                assert_eq!(held & !CAPABILITIES.bits(), 0, "{name}");
            }
            assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        }
        drop(leave);
        confined.join().unwrap();
        assert!(temp.path().join("own/new").exists());
    }
}
