//! The VMM's own seccomp filter. It is loaded when everything is open and before the guest's first instruction.

use berth_runtime::confine::{self as walls, Filter};

use super::error::Error;

/// Calls whose arguments do not matter: they work on what is open.
const ALLOWED: &[libc::c_long] = &[
    // Devices' data.
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
];

/// `<linux/if_tun.h>`: which checksums a tap leaves to the guest, known when the guest's driver starts.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// The requests a machine at work makes. To KVM (`<linux/kvm.h>`): run a vCPU, look at its registers, translate an address,
/// look at its `cpuid`. To a terminal: its state and size. To a descriptor: not to block. To a tap.
const REQUESTS: [u64; 10] = [
    0xae80,
    0x8090_ae81,
    0x8138_ae83,
    0xc018_ae85,
    0xc008_ae91,
    libc::TCGETS,
    libc::TCSETS,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    TUNSETOFFLOAD,
];

/// Loads the filter into the calling thread; those it starts inherit it.
pub fn confine() -> Result<(), Error> {
    load().map_err(Error::Seccomp)
}

fn load() -> Result<(), walls::Error> {
    let local = [libc::AF_UNIX as u64];
    Filter::threaded(ALLOWED)?
        // What malloc(3) asks about processors and overcommitment once threads compete.
        .missing(libc::SYS_openat)
        .only(libc::SYS_socket, 0, &local)?
        .only(libc::SYS_socketpair, 0, &local)?
        .only(libc::SYS_ioctl, 1, &REQUESTS)?
        .load()
}
