//! The VMM's own seccomp filter, within whatever the sandbox around it forbids already.
//!
//! It is loaded when everything is open and before the guest's first instruction. What is not on the list ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::error::Error;

/// Calls whose arguments do not matter: they work on what is open, on this process's memory, or on its threads.
const ALLOWED: &[libc::c_long] = &[
    // Devices' data.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    // Waiting.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Threads and signals.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The requests to KVM a machine at work makes: run a vCPU, look at its registers, translate an address, look at its
/// `cpuid`. `<linux/kvm.h>`.
const KVM_REQUESTS: [u64; 5] = [KVM_RUN, 0x8090_ae81, 0x8138_ae83, 0xc018_ae85, 0xc008_ae91];
const KVM_RUN: u64 = 0xae80;
/// `<linux/if_tun.h>`: which checksums a tap leaves to the guest, known when the guest's driver starts.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// What reading and setting a terminal's state and size asks: `TCGETS`, `TCSETS`, `TIOCGWINSZ`; `FIONBIO`; a tap's.
const OTHER_REQUESTS: [u64; 5] = [libc::TCGETS, libc::TCSETS, libc::TIOCGWINSZ, libc::FIONBIO, TUNSETOFFLOAD];

/// Loads the filter into the calling thread; those it starts inherit it. Sets `no_new_privs`.
pub fn confine() -> Result<(), Error> {
    for program in [without_clone3(), allowed()] {
        let program = program.map_err(|source| Error::Seccomp(source.into()))?;
        seccompiler::apply_filter(&program).map_err(Error::Seccomp)?;
    }
    Ok(())
}

/// `clone3` hides its flags behind a pointer. It is said not to exist, and the C library takes `clone`.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}

fn allowed() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    // No memory becomes code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    // Threads alone. The other filter's answer to `clone3` is the one that counts.
    rules.insert(libc::SYS_clone3, Vec::new());
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, vec![only(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?]);
    }
    let requests = KVM_REQUESTS.into_iter().chain(OTHER_REQUESTS);
    let requests = requests.map(|request| only(1, SeccompCmpOp::Eq, request)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, requests);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// A rule about one argument's low 32 bits, which is all of these that the kernel looks at.
fn only(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}
