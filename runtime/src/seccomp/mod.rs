//! System call filtering: an OCI seccomp profile becomes one classic BPF program for `seccomp(2)`.
//!
//! [`default_profile`] makes the profile a container gets unless it asks for another, [`compile`] turns any
//! profile into a [`Filter`], and [`install`] loads it into the calling thread. Compile before the sandbox's
//! process is made, install as its last step: what runs between the two needs no memory but the filter's.
//!
//! # What a program means
//!
//! 1. A system call of another architecture (a 32-bit program) ends the process with `SIGSYS`: its numbers mean other
//!    calls, and a profile's `architectures` beyond the native one are not supported. x32 calls on
//!    `x86_64` fail with `ENOSYS`.
//! 2. A system call with a number above every one the profile names fails with `ENOSYS` if the profile denies by
//!    default. It is younger than the profile, and C libraries fall back on `ENOSYS` alone.
//! 3. A system call with a rule without arguments has that rule's action; the first such rule counts.
//! 4. A system call with rules that look at arguments has the action of the first that matches.
//! 5. Every other call has the default action.
//!
//! Names the native architecture does not have are skipped, as are rules that say what the default action says
//! anyway; both as in runc and libseccomp.
//!
//! # Shape of a program
//!
//! System calls with equal actions form ranges of numbers, and a binary search finds the range: 270 instructions for
//! the default profile, where a list of comparisons, as `seccompiler` makes it, has 1,650. The kernel walks the
//! program once for every system call number when it is loaded, so the search loads in 0.1 ms and the list in 0.85. One
//! program with all actions also needs no other filter stacked on it. Rules on arguments are compiled by
//! `seccompiler`, one program per system call and action, and placed behind the search.

mod compile;
mod default_profile;
mod install;
mod search;
#[cfg(test)]
mod tests;

pub use compile::compile;
pub(crate) use compile::{Verdict, filter};
pub use default_profile::default_profile;
pub use install::install;
use seccompiler::sock_filter;

/// A filter ready for [`install`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` bits.
    flags: libc::c_ulong,
}

impl Filter {
    /// The number of BPF instructions; the kernel accepts at most 4096.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }
}

/// Why a seccomp profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `SCMP_ACT_NOTIFY` needs a seccomp agent.
    #[error(
        "the seccomp profile uses SCMP_ACT_NOTIFY{} and berth has no seccomp agent; use SCMP_ACT_ERRNO or SCMP_ACT_TRACE",
        .syscall.as_ref().map_or(String::new(), |name| format!(" for system call '{name}',"))
    )]
    Notify {
        /// The first system call of the rule; `None`: the default action.
        syscall: Option<String>,
    },
    /// `errnoRet` does not fit the 16 bits the kernel has for it.
    #[error("the seccomp profile has errnoRet {0}; it must be at most 65535")]
    Errno(u32),
    /// A rule `seccompiler` refuses, such as an argument index above 5.
    #[error("cannot compile the seccomp rule for system call '{syscall}': {source}")]
    Rule {
        /// The system call's name.
        syscall: String,
        /// What is wrong with it.
        source: seccompiler::BackendError,
    },
    /// The program is longer than the kernel accepts.
    #[error("the seccomp profile needs {0} BPF instructions and the kernel accepts 4096; remove rules on arguments")]
    TooLarge(usize),
    /// This machine's architecture is not one `seccompiler` knows.
    #[error("seccomp profiles are not supported on {0}; run with seccomp unconfined")]
    Architecture(&'static str),
    /// The kernel refused the filter.
    #[error("cannot load the seccomp filter of {instructions} instructions: {source}{}", install::advice(.source))]
    Load {
        /// The filter's length.
        instructions: usize,
        /// The error of `seccomp(2)`.
        source: std::io::Error,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
