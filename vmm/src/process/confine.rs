//! The second wall: what the VMM itself may still do in its sandbox when the guest's first instruction runs. No
//! capabilities, and a seccomp filter that lists the calls its servers make of the host. The right column of the table in
//! [`super::syscalls`] is served with these; a server checks arguments that are limited here before it asks.

use berth_runtime::confine::{self as walls, Filter};

use super::syscalls::{files, sockets};

/// Calls with any argument. None takes a path that is not below a descriptor but for local sockets, whose names are
/// resolved within this thread's own directory.
const ALLOWED: &[libc::c_long] = &[
    // Open files.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_getdents64,
    // Names below a descriptor.
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fchdir,
    // Descriptors without a name.
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_rt_sigtimedwait,
    // The machine.
    libc::SYS_clock_getres,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
];

/// The requests to KVM (`<linux/kvm.h>`): run a vCPU; make one, with its `cpuid`, registers, XCR0, MSRs, vector
/// registers, state and clock; add memory; translate an address, by registers and `cpuid` as they are.
const KVM_REQUESTS: [u64; 14] = [
    0xae80,
    0xae41,
    0x4008_ae90,
    0x8138_ae83,
    0x4138_ae84,
    0x4188_aea7,
    0x4008_ae89,
    0x9000_aea4,
    0x4004_ae99,
    0x4018_aee1,
    0x4020_ae46,
    0xc018_ae85,
    0x8090_ae81,
    0xc008_ae91,
];
/// `KVM_SET_XSAVE`.
const SET_XSAVE: u64 = 0x5000_aea5;

/// Gives up what the first process of a sandbox has beyond its user, and loads the filter into this thread, which those it
/// starts inherit.
pub fn confine() -> Result<(), walls::Error> {
    walls::renounce()?;
    let requests: Vec<u64> = KVM_REQUESTS.into_iter().chain([SET_XSAVE]).chain(files::REQUESTS).collect();
    Filter::threaded(ALLOWED)?
        // What malloc(3) asks about processors and overcommitment once threads compete.
        .missing(libc::SYS_openat)
        // A working directory of its own for each thread.
        .only(libc::SYS_unshare, 0, &[libc::CLONE_FS as u64])?
        // Niceness of threads.
        .only(libc::SYS_setpriority, 0, &[u64::from(libc::PRIO_PROCESS)])?
        .only(libc::SYS_socket, 0, &sockets::FAMILIES)?
        .only(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64])?
        .only(libc::SYS_ioctl, 1, &requests)?
        .load()
}
