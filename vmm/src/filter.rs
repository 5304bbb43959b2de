//! Seccomp filters for what handles a guest's data: a list of the calls it still makes, within whatever the sandbox
//! around it forbids already. What is not on the list ends the process.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why a filter is not in place.
pub type Error = seccompiler::Error;

/// What any program with threads and a heap does, its arguments apart from those [`Filter::threaded`] looks at.
const THREADED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_fcntl,
    // Waiting.
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

/// Calls that the C library makes and can do without, said not to exist: `clone3`, which hides its flags behind a pointer,
/// and opening what malloc(3) asks about processors and overcommitment once threads compete.
const MISSING: &[c_long] = &[libc::SYS_clone3, libc::SYS_openat];

/// A filter in the making.
#[derive(Debug)]
pub struct Filter(BTreeMap<c_long, Vec<SeccompRule>>);

impl Filter {
    /// Allows `calls`, whatever their arguments.
    pub fn new(calls: &[c_long]) -> Self {
        Self(calls.iter().map(|&call| (call, Vec::new())).collect())
    }

    /// Allows `calls`, threads and memory. No memory becomes code, and no other process is begun or signalled.
    pub fn threaded(calls: &[c_long]) -> Result<Self, Error> {
        let thread = libc::CLONE_THREAD as u64;
        let executable = libc::PROT_EXEC as u64;
        Self::new(&[THREADED, MISSING, calls].concat())
            .rule(libc::SYS_mmap, 2, &SeccompCmpOp::MaskedEq(executable), &[0])?
            .rule(libc::SYS_mprotect, 2, &SeccompCmpOp::MaskedEq(executable), &[0])?
            .rule(libc::SYS_clone, 0, &SeccompCmpOp::MaskedEq(thread), &[thread])?
            .only(libc::SYS_tgkill, 0, &[u64::from(std::process::id())])?
            .only(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64])
    }

    /// Allows `call` where an argument is one of `values`.
    pub fn only(self, call: c_long, argument: u8, values: &[u64]) -> Result<Self, Error> {
        self.rule(call, argument, &SeccompCmpOp::Eq, values)
    }

    /// The low 32 bits are compared, which is all of these arguments that the kernel looks at.
    fn rule(mut self, call: c_long, argument: u8, operator: &SeccompCmpOp, values: &[u64]) -> Result<Self, Error> {
        let rule = |&value| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator.clone(), value)
                .and_then(|condition| SeccompRule::new(vec![condition]))
        };
        let rules = values.iter().map(rule).collect::<Result<_, BackendError>>()?;
        self.0.insert(call, rules);
        Ok(self)
    }

    /// Loads the filter into the calling thread; those it starts inherit it. Sets `no_new_privs`.
    pub fn load(self) -> Result<(), Error> {
        let Self(rules) = self;
        let all = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64);
        let all: BpfProgram = all.and_then(TryInto::try_into)?;
        // Where both have an answer, the kernel takes the one that forbids.
        for program in [missing()?, all] {
            seccompiler::apply_filter(&program)?;
        }
        Ok(())
    }
}

fn missing() -> Result<BpfProgram, BackendError> {
    let rules = MISSING.iter().map(|&call| (call, Vec::new())).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}
