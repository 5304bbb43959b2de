//! The walls that this program raises round itself, within whatever the sandbox forbids already: no capabilities, no new
//! privileges, and only the system calls that what follows takes. What is not on the list fails with `EPERM`.

use std::collections::BTreeMap;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::error::{Error, Result};

/// Address space of the compiler, bytes: what a hostile module can make it fill.
const COMPILER_MEMORY: u64 = 8 << 30;
/// Seconds of processor time of the compiler.
const COMPILER_TIME: u64 = 120;

/// Memory, threads, signals, time, and what is open already.
const COMMON: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What WASI's files, clocks and streams come to.
const WASI: &[libc::c_long] = &[
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fcntl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_ftruncate,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_utimensat,
    libc::SYS_dup,
    // The memory that a module begins with.
    libc::SYS_memfd_create,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_setitimer,
];

/// Sockets of the families that [`NETWORK_FAMILIES`] names.
const NETWORK: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
];

const NETWORK_FAMILIES: [libc::c_int; 2] = [libc::AF_INET, libc::AF_INET6];

/// Which sockets there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// None.
    None,
    /// Those that were handed over, and what they accept.
    Given,
    /// Those of the sandbox's network.
    Any,
}

/// For the compiler: it reads one open file and writes another. It ends with whoever wants to know.
pub fn compiler() -> Result<()> {
    let failed = |error| Error::Confine { wall: "limit the compiler", reason: std::io::Error::from(error).to_string() };
    for (resource, most) in [(Resource::As, COMPILER_MEMORY), (Resource::Cpu, COMPILER_TIME), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(failed)?;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    renounce()?;
    apply(|| filter(COMMON.iter(), &[]))
}

/// For a module that is about to run, after [`renounce`]: no memory becomes code any more, and there are no other
/// sockets.
pub fn module(sockets: Sockets) -> Result<()> {
    let (calls, families): (&[_], &[_]) = match sockets {
        Sockets::None => (&[], &[]),
        Sockets::Given => (NETWORK, &[]),
        Sockets::Any => (NETWORK, &NETWORK_FAMILIES),
    };
    apply(|| filter(COMMON.iter().chain(WASI).chain(calls), families))
}

/// Gives up the rights that the process was started with.
pub fn renounce() -> Result<()> {
    let failed = |wall| move |error| Error::Confine { wall, reason: std::io::Error::from(error).to_string() };
    set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("drop capabilities"))
}

fn apply(filter: impl Fn() -> Result<BpfProgram, BackendError>) -> Result<()> {
    let failed = |reason: String| Error::Confine { wall: "set the seccomp filter", reason };
    for program in [without_clone3(), filter()] {
        let program = program.map_err(|error| failed(error.to_string()))?;
        seccompiler::apply_filter(&program).map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// `clone3` hides its flags behind a pointer. It is said not to exist, and the C library takes `clone`.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    program(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn filter<'a>(
    calls: impl Iterator<Item = &'a libc::c_long>,
    families: &[libc::c_int],
) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = calls.map(|&call| (call, Vec::new())).collect();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    // Threads alone. The other filter's answer to `clone3` is the one that counts.
    rules.insert(libc::SYS_clone3, Vec::new());
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    // Its own limits can be read, no other process's and none set: the third argument is null.
    rules.insert(libc::SYS_prlimit64, vec![only(2, SeccompCmpOp::Eq, 0)?]);
    let requests = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO];
    rules.insert(
        libc::SYS_ioctl,
        requests.into_iter().map(|request| only(1, SeccompCmpOp::Eq, request)).collect::<Result<_, _>>()?,
    );
    if !families.is_empty() {
        let families = families.iter().map(|&family| only(0, SeccompCmpOp::Eq, family as u64));
        rules.insert(libc::SYS_socket, families.collect::<Result<_, _>>()?);
    }
    program(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn program(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matching, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// A rule about one argument's low 32 bits.
fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}
