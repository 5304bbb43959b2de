//! The seccomp profile of a container that names none: as strict as docker's.
//!
//! It lists what is allowed; the rest fails with `EPERM`. Never allowed are calls that no capability makes safe in a
//! container (kernel keyrings, `io_uring`, `userfaultfd`, swap, kexec, obsolete calls). Calls that exist for the holders of
//! one capability are allowed with it.

use std::collections::HashSet;
use std::hash::BuildHasher;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

/// Allowed to every container, by subject.
#[rustfmt::skip]
const ALLOWED: &[&[&str]] = &[
    // Opening and closing, descriptors
    &[
        "close", "close_range", "creat", "dup", "dup2", "dup3", "fcntl", "flock", "ioctl", "memfd_create",
        "memfd_secret", "name_to_handle_at", "open", "openat", "openat2", "pidfd_open", "pidfd_send_signal",
        "pipe", "pipe2",
    ],
    // Reading and writing
    &[
        "copy_file_range", "fadvise64", "fallocate", "fdatasync", "fsync", "ftruncate", "lseek", "pread64",
        "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readv", "sendfile",
        "splice", "sync", "sync_file_range", "syncfs", "tee", "truncate", "vmsplice", "write", "writev",
    ],
    // Names, directories, attributes
    &[
        "access", "chdir", "chmod", "chown", "faccessat", "faccessat2", "fchdir", "fchmod", "fchmodat",
        "fchmodat2", "fchown", "fchownat", "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "fstat",
        "fstatfs", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat", "lchown",
        "lgetxattr", "link", "linkat", "listmount", "listxattr", "listxattrat", "llistxattr",
        "lremovexattr", "lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat", "newfstatat",
        "readlink", "readlinkat", "removexattr", "removexattrat", "rename", "renameat", "renameat2",
        "rmdir", "setxattr", "setxattrat", "stat", "statfs", "statmount", "statx", "symlink", "symlinkat",
        "umask", "unlink", "unlinkat", "utime", "utimensat", "utimes",
    ],
    // Waiting for events
    &[
        "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
        "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark", "inotify_add_watch",
        "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents",
        "io_pgetevents", "io_setup", "io_submit", "poll", "ppoll", "pselect6", "select", "signalfd",
        "signalfd4",
    ],
    // Memory
    &[
        "brk", "cachestat", "madvise", "map_shadow_stack", "membarrier", "mincore", "mlock", "mlock2",
        "mlockall", "mmap", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
        "pkey_alloc", "pkey_free", "pkey_mprotect", "remap_file_pages",
    ],
    // Processes and threads
    &[
        "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_wait",
        "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getpgid", "getpgrp",
        "getpid", "getppid", "getpriority", "getrlimit", "getrusage", "getsid", "gettid", "ioprio_get",
        "ioprio_set", "prctl", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev",
        "ptrace", "restart_syscall", "rseq", "sched_get_priority_max", "sched_get_priority_min",
        "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
        "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
        "sched_setscheduler", "sched_yield", "set_robust_list", "set_thread_area", "set_tid_address",
        "setpgid", "setpriority", "setrlimit", "setsid", "sysinfo", "uname", "uretprobe", "vfork", "wait4",
        "waitid",
        #[cfg(target_arch = "x86_64")]
        "arch_prctl",
        #[cfg(target_arch = "x86_64")]
        "modify_ldt",
    ],
    // Users, groups, privileges given up
    &[
        "capget", "capset", "getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid", "getuid",
        "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp", "setfsgid",
        "setfsuid", "setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid",
    ],
    // Signals
    &[
        "kill", "pause", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
        "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sigaltstack", "tgkill",
        "tkill",
    ],
    // Time and randomness (setting the clock needs a capability the kernel itself asks for)
    &[
        "adjtimex", "alarm", "clock_adjtime", "clock_getres", "clock_gettime", "clock_nanosleep",
        "getitimer", "getrandom", "gettimeofday", "nanosleep", "setitimer", "time", "timer_create",
        "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create",
        "timerfd_gettime", "timerfd_settime", "times",
    ],
    // Sockets; `socket` itself is below
    &[
        "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
        "recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
        "socketpair",
    ],
    // System V and POSIX IPC
    &[
        "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl",
        "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt",
        "shmget",
    ],
];

/// Allowed with a capability.
#[rustfmt::skip]
const ALLOWED_WITH: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::SysAdmin, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
        "lookup_dcookie", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount",
        "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd",
        "setdomainname", "sethostname", "setns", "syslog", "umount2", "unshare",
    ]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "settimeofday"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// The `clone(2)` flags that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The personalities a program may take: Linux, `PER_LINUX32`, each with `UNAME26`; the last one only asks.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Address families as (mask, value): every one up to 47 but `AF_ALG` (38: the kernel's cryptography, a wide and much
/// attacked surface) and `AF_VSOCK` (40: it knows no namespaces and leads to the hypervisor). `socket(2)` takes an
/// `int`, so the upper half of the register must not count: with 64-bit comparisons it would be a way round the rule.
const SOCKET_FAMILIES: &[(u64, u64)] = &[
    (0xFFFF_FFE0, 0),
    (0xFFFF_FFFC, 32),
    (0xFFFF_FFFE, 36),
    (0xFFFF_FFFF, 39),
    (0xFFFF_FFFF, 41),
    (0xFFFF_FFFE, 42),
    (0xFFFF_FFFC, 44),
];

/// The profile for a container whose processes may come to hold `caps` (its bounding set), for this machine's
/// architecture.
pub fn default_profile<S: BuildHasher>(caps: &HashSet<Capability, S>) -> LinuxSeccomp {
    let mut names = ALLOWED.concat();
    for (cap, with_cap) in ALLOWED_WITH {
        if caps.contains(cap) {
            names.extend_from_slice(with_cap);
        }
    }
    let mut syscalls = vec![allow(&names)];
    for value in PERSONALITIES {
        syscalls.push(allow_if("personality", Operator::ScmpCmpEq, *value, 0));
    }
    for (mask, family) in SOCKET_FAMILIES {
        syscalls.push(allow_if("socket", Operator::ScmpCmpMaskedEq, *mask, *family));
    }
    if !caps.contains(&Capability::SysAdmin) {
        syscalls.push(allow_if("clone", Operator::ScmpCmpMaskedEq, NEW_NAMESPACES, 0));
        // Its flags are in memory, where no filter sees them; C libraries fall back to clone on ENOSYS alone.
        let mut clone3 = allow(&["clone3"]);
        clone3.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(libc::ENOSYS as u32));
        syscalls.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(vec![NATIVE]))
        .set_syscalls(Some(syscalls));
    profile
}

const NATIVE: Arch = if cfg!(target_arch = "x86_64") {
    Arch::ScmpArchX86_64
} else if cfg!(target_arch = "aarch64") {
    Arch::ScmpArchAarch64
} else {
    Arch::ScmpArchNative
};

/// Allows the named calls.
fn allow(names: &[&str]) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect()).set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

/// Allows the named call if its first argument compares so.
fn allow_if(name: &str, op: Operator, value: u64, value_two: u64) -> LinuxSyscall {
    let arg = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .op(op)
        .value(value)
        .value_two(value_two)
        .build()
        .expect("every field has a default");
    let mut rule = allow(&[name]);
    rule.set_args(Some(vec![arg]));
    rule
}
