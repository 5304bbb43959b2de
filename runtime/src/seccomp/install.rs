//! Loading a filter into the calling thread.

use std::io;

use super::{Error, Filter, Result};

/// Loads `filter` into the calling thread; its children inherit it, `execve` keeps it, and nothing takes it away.
///
/// Needs `CAP_SYS_ADMIN` in the thread's user namespace, or `no_new_privs`, which is left as it is. A kernel too old for
/// the profile's flags gets the filter without them: they say what is logged and how much speculation is
/// allowed, not what is denied.
pub fn install(filter: &Filter) -> Result<()> {
    let loaded = match load(filter, filter.flags) {
        Err(source) if source.raw_os_error() == Some(libc::EINVAL) && filter.flags != 0 => load(filter, 0),
        result => result,
    };
    loaded.map_err(|source| Error::Load { instructions: filter.program.len(), source })
}

fn load(filter: &Filter, flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.program.len()).expect("compile() bounds the length"),
        // The kernel only reads it.
        filter: filter.program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` points at `len` initialised instructions, whose type has the layout of the C one, and both
    // outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has other seccomp filters"))),
    }
}

/// What to do about an error of `seccomp(2)`.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES) => "; it needs CAP_SYS_ADMIN or noNewPrivileges",
        Some(libc::ENOSYS | libc::EINVAL) => "; the kernel needs CONFIG_SECCOMP_FILTER",
        _ => "",
    }
}
