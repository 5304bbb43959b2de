//! Opens a tap as the device takes it. The test with two guests, which is a program of its own, has this file too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

/// Makes the tap `name` in this thread's network namespace.
pub fn open(name: &str) -> File {
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request takes a `struct ifreq`.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw const request) };
    assert_eq!(made, 0, "{name}: {}", io::Error::last_os_error());
    let header_size: libc::c_int = 12;
    // SAFETY: the request reads an int.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header_size) }, 0);
    tap
}
