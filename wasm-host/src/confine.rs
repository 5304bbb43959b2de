//! The walls that this program raises round itself, within whatever the sandbox forbids already: no capabilities, no new
//! privileges, and only the system calls that what follows takes. What is not on the list fails with `EPERM`.

use berth_runtime::confine::{self, Filter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Address space of the compiler, bytes: what a hostile module can make it fill.
#[cfg(feature = "compiler")]
const COMPILER_MEMORY: u64 = 8 << 30;
/// Seconds of processor time of the compiler.
#[cfg(feature = "compiler")]
const COMPILER_TIME: u64 = 120;

/// What is open already.
const OPEN: &[libc::c_long] = &[libc::SYS_readv, libc::SYS_writev, libc::SYS_fstat, libc::SYS_lseek];

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

const NETWORK_FAMILIES: [u64; 2] = [libc::AF_INET as u64, libc::AF_INET6 as u64];

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
#[cfg(feature = "compiler")]
pub fn compiler() -> Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};

    let failed = |error| Error::Confine { wall: "limit the compiler", reason: std::io::Error::from(error).to_string() };
    for (resource, most) in [(Resource::As, COMPILER_MEMORY), (Resource::Cpu, COMPILER_TIME), (Resource::Core, 0)] {
        // Whoever started this may have said less.
        let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).map_err(failed)?;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    renounce()?;
    filter(&[], &[]).and_then(Filter::load).map_err(walls("set the compiler's seccomp filter"))
}

/// For a host that serves: as many connections as the sandbox lets it have, each of which is a descriptor.
pub fn open_files() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(Error::io("raise the limit of open files"))
}

/// For a module that is about to run, after [`renounce`]: no memory becomes code any more, and there are no other
/// sockets.
pub fn module(sockets: Sockets) -> Result<()> {
    let (calls, families): (&[_], &[_]) = match sockets {
        Sockets::None => (&[], &[]),
        Sockets::Given => (NETWORK, &[]),
        Sockets::Any => (NETWORK, &NETWORK_FAMILIES),
    };
    // tokio wakes itself through a pair of its own where a crate of the build wants signals of it.
    let filter = filter(&[WASI, calls].concat(), families)
        .and_then(|filter| filter.only(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]));
    filter.and_then(Filter::load).map_err(walls("set the module's seccomp filter"))
}

/// Gives up the rights that the process was started with.
pub fn renounce() -> Result<()> {
    confine::renounce().map_err(walls("drop capabilities"))
}

fn walls(wall: &'static str) -> impl FnOnce(confine::Error) -> Error {
    move |error| Error::Confine { wall, reason: error.to_string() }
}

fn filter(calls: &[libc::c_long], families: &[u64]) -> Result<Filter, confine::Error> {
    let filter = Filter::threaded(&[OPEN, calls].concat())?
        .refusing()
        // Its own limits can be read, no other process's and none set: the third argument is null.
        .only(libc::SYS_prlimit64, 2, &[0])?
        .only(libc::SYS_ioctl, 1, &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO])?;
    if families.is_empty() { Ok(filter) } else { filter.only(libc::SYS_socket, 0, families) }
}
