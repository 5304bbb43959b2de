//! The loopback interface and the address of the first network card (`netdevice(7)`, `rtnetlink` needs no more than this).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use berth_runtime::error::{Attempt as _, Error, Result};
use berth_vmm::guest::start::Network;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const LOOPBACK: &str = "lo";
const CARD: &str = "eth0";

nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_mask, libc::SIOCSIFNETMASK, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);

/// Brings the loopback interface up, and the card where the machine has an address.
pub fn up(network: Option<&Network>) -> Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let control = socket(AddressFamily::Inet, SockType::Datagram, flags, None).attempt(|| "open a socket")?;
    switch_on(&control, LOOPBACK)?;
    let Some(network) = network else { return Ok(()) };
    let Some(mask) = mask(network.prefix) else {
        return Err(Error::Invalid(format!("a network prefix has at most 32 bits, not {}", network.prefix)));
    };
    let mut request = request(CARD);
    request.ifr_ifru.ifru_addr = address(network.address);
    // SAFETY: the request is the structure this ioctl reads.
    unsafe { set_address(control.as_raw_fd(), &raw const request) }
        .attempt(|| format!("give {CARD} the address {} (is there a network card?)", network.address))?;
    request.ifr_ifru.ifru_netmask = address(mask);
    // SAFETY: as above.
    unsafe { set_mask(control.as_raw_fd(), &raw const request) }
        .attempt(|| format!("give {CARD} the network mask {mask}"))?;
    switch_on(&control, CARD)?;
    network.gateway.map_or(Ok(()), |gateway| route(&control, gateway))
}

fn mask(prefix: u8) -> Option<Ipv4Addr> {
    let host_bits = 32_u32.checked_sub(u32::from(prefix))?;
    Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0)))
}

fn switch_on(control: &OwnedFd, interface: &str) -> Result<()> {
    let mut request = request(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is the structure this ioctl reads.
    unsafe { set_flags(control.as_raw_fd(), &raw const request) }
        .map(drop)
        .attempt(|| format!("bring the network interface {interface} up"))
}

fn route(control: &OwnedFd, gateway: Ipv4Addr) -> Result<()> {
    // SAFETY: all zero is a route to everywhere, with no pointer set.
    let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
    entry.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    entry.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    entry.rt_gateway = address(gateway);
    entry.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the entry is the structure this ioctl reads; it names no device.
    unsafe { add_route(control.as_raw_fd(), &raw const entry) }
        .map(drop)
        .attempt(|| format!("set the gateway {gateway}"))
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: all zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// An address as `sockaddr_in` lays it out in a `sockaddr`: two bytes of port, then four of address.
fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn masks() {
        let text = |prefix| mask(prefix).map(|mask| mask.to_string());
        assert_eq!(text(24).as_deref(), Some("255.255.255.0"));
        assert_eq!(text(32).as_deref(), Some("255.255.255.255"));
        assert_eq!(text(0).as_deref(), Some("0.0.0.0"));
        assert_eq!(text(33), None);
    }
}
