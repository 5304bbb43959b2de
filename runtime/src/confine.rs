//! The walls that an executor's program raises round itself when what it needs is open, within whatever the sandbox forbids
//! already: no capabilities, and of the system calls a list of those it still makes.

use std::collections::BTreeMap;

use libc::c_long;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::seccomp::{self, Verdict};

/// Why a wall does not stand.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities, or the way to new ones.
    #[error("cannot give up capabilities: {0}")]
    Renounce(std::io::Error),
    /// A rule on an argument.
    #[error("cannot compile a rule of the seccomp filter: {0}")]
    Rule(#[from] BackendError),
    /// The filter.
    #[error(transparent)]
    Filter(#[from] seccomp::Error),
}

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

/// Gives up all capabilities of the calling thread, and every way to new ones.
pub fn renounce() -> Result<(), Error> {
    let none = CapabilitySet::empty();
    set_no_new_privs(true)
        .and_then(|()| set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }))
        .map_err(|error| Error::Renounce(error.into()))
}

/// A seccomp filter in the making.
#[derive(Debug)]
pub struct Filter {
    verdicts: BTreeMap<u32, Verdict>,
    otherwise: SeccompAction,
}

impl Filter {
    /// Allows `calls`, whatever their arguments. What is not allowed ends the process.
    pub fn new(calls: &[c_long]) -> Self {
        let allow = || Verdict::Always(SeccompAction::Allow.into());
        let verdicts = calls.iter().map(|&call| (call as u32, allow())).collect();
        Self { verdicts, otherwise: SeccompAction::KillProcess }
    }

    /// Allows `calls`, threads and memory. No memory becomes code, and no other process is begun or signalled.
    pub fn threaded(calls: &[c_long]) -> Result<Self, Error> {
        let thread = libc::CLONE_THREAD as u64;
        let executable = libc::PROT_EXEC as u64;
        Self::new(&[THREADED, calls].concat())
            // It hides its flags behind a pointer; the C library then takes `clone`.
            .missing(libc::SYS_clone3)
            .rule(libc::SYS_mmap, 2, &SeccompCmpOp::MaskedEq(executable), &[0])?
            .rule(libc::SYS_mprotect, 2, &SeccompCmpOp::MaskedEq(executable), &[0])?
            .rule(libc::SYS_clone, 0, &SeccompCmpOp::MaskedEq(thread), &[thread])?
            .only(libc::SYS_tgkill, 0, &[u64::from(std::process::id())])?
            .only(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64])
    }

    /// Says that a call does not exist which the C library makes and can do without.
    #[must_use]
    pub fn missing(mut self, call: c_long) -> Self {
        let missing = SeccompAction::Errno(libc::ENOSYS as u32);
        self.verdicts.insert(call as u32, Verdict::Always(missing.into()));
        self
    }

    /// What is not allowed fails with `EPERM` instead.
    #[must_use]
    pub fn refusing(self) -> Self {
        Self { otherwise: SeccompAction::Errno(libc::EPERM as u32), ..self }
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
        self.verdicts.insert(call as u32, Verdict::ByArguments(vec![(SeccompAction::Allow, rules)]));
        Ok(self)
    }

    /// Loads the filter into the calling thread; those it starts inherit it. Sets `no_new_privs`.
    pub fn load(self) -> Result<(), Error> {
        let filter = seccomp::filter(self.verdicts, self.otherwise.into())?;
        set_no_new_privs(true).map_err(|error| Error::Renounce(error.into()))?;
        Ok(seccomp::install(&filter)?)
    }
}
