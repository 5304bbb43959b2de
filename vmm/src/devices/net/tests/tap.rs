//! The device on a real tap, in a network namespace of the test's own. Needs root; without, the test says so and does
//! nothing.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::{open_tap, *};
use crate::devices::testing::Driver;

const RX: usize = 0;
const TX: usize = 1;

const HOST: [u8; 4] = [10, 0, 0, 1];
const GUEST: [u8; 4] = [10, 0, 0, 2];
const BROADCAST: [u8; 6] = [0xff; 6];

/// `struct ifreq`, its union as bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    data: [u8; 24],
}

impl InterfaceRequest {
    fn new(data: &[u8]) -> Self {
        let mut request = Self { name: *b"tap0\0\0\0\0\0\0\0\0\0\0\0\0", data: [0; 24] };
        request.data[..data.len()].copy_from_slice(data);
        request
    }

    fn call(&mut self, fd: &impl AsRawFd, number: libc::Ioctl) {
        // SAFETY: all the requests used here take a `struct ifreq`.
        let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *self) };
        assert_eq!(outcome, 0, "ioctl {number:#x}: {}", io::Error::last_os_error());
    }
}

/// A tap with an address, in this thread's own network namespace. `None` without the right to make one.
fn tap() -> Option<File> {
    // SAFETY: concerns this thread alone, which the test has for itself.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("skipped: no network namespace ({})", io::Error::last_os_error());
        return None;
    }
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: there is no /dev/net/tun");
        return None;
    }
    let tap = open_tap::open("tap0");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = [&(libc::AF_INET as u16).to_ne_bytes()[..], &[0, 0], &HOST].concat();
    InterfaceRequest::new(&address).call(&socket, libc::SIOCSIFADDR as libc::Ioctl);
    InterfaceRequest::new(&(libc::IFF_UP as u16).to_ne_bytes()).call(&socket, libc::SIOCSIFFLAGS as libc::Ioctl);
    Some(tap)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    ((once >> 16) + once) as u16
}

/// A UDP datagram from the guest to the host, its checksum left to the device.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut ip = [&[0x45, 0][..], &(20 + length).to_be_bytes(), &[0, 1, 0, 0, 64, 17, 0, 0], &GUEST, &HOST].concat();
    let checksum = !fold(sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = fold(sum(&GUEST) + sum(&HOST) + 17 + u32::from(length));
    let udp = [1000, port, length, pseudo].map(u16::to_be_bytes).concat();
    // Flag 1: the checksum is wanted from byte 34 on (Ethernet and IP header), to be put 6 bytes behind it.
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    [&header[..], &BROADCAST, &MAC, &[8, 0], &ip, &udp, payload].concat()
}

#[test]
fn talks_to_the_hosts_network() {
    let outcome = std::thread::spawn(|| {
        let Some(tap) = tap() else { return };
        let config = NetConfig { tap: tap.into(), ..config(UnixDatagram::unbound().unwrap()) };
        let mut driver = Driver::start(Net::new(config).unwrap(), u64::MAX);

        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let port = socket.local_addr().unwrap().port();
        driver.request(TX, &[&datagram(port, b"from the guest")], &[]);
        let mut received = [0; 100];
        let (length, from) = socket.recv_from(&mut received).unwrap();
        assert_eq!((&received[..length], from.to_string()), (&b"from the guest"[..], "10.0.0.2:1000".to_owned()));

        socket.set_broadcast(true).unwrap();
        socket.send_to(b"from the host", "255.255.255.255:9").unwrap();
        // The host's kernel may have something of its own to say as well.
        let frame = loop {
            driver.submit(RX, &[], &[1526]);
            driver.kick(RX);
            let (_, frame) = driver.wait_for(|driver| driver.used(RX));
            if frame.ends_with(b"from the host") {
                break frame;
            }
        };
        assert_eq!(frame[..1], [1], "the checksum is left to the guest");
        assert_eq!(frame[10..12], [1, 0], "one buffer");
        assert_eq!(frame[12..18], BROADCAST);
    });
    outcome.join().unwrap();
}
