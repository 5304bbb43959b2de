//! The device against a well-behaved and an ill-behaved driver.

use std::io::Write;

use super::queue::{HOST_CID, Header, STREAM};
use super::{Vsock, VsockConfig};
use crate::devices::testing::{Bytes, ill_behaved};

const GUEST_CID: u64 = 3;
/// The first port the device takes for the host's side of a connection it begins.
const FIRST_PORT: u32 = 1 << 30;

/// Drives the device as `data` says; the fuzz target's body.
///
/// # Panics
/// Where the device misbehaves.
pub fn fuzz(data: &[u8]) {
    let mut device = Vsock::new(VsockConfig { guest_cid: GUEST_CID, listener: None, path: None }).expect("vsock");
    let mut first = device.connect(5).expect("socket pair");
    first.set_nonblocking(true).expect("socket");
    // As much as the socket takes.
    let _ = first.write_all(&vec![7; 1 << 20]);
    drop(device.connect(6).expect("socket pair"));
    let expected = device.listen(1).expect("socket pair");
    ill_behaved(Box::new(device), data, header);
    drop((first, expected));
}

/// A packet's header, and sometimes a little data.
fn header(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let strange = bytes.byte();
    let host_ports = [FIRST_PORT, FIRST_PORT, FIRST_PORT + 1, 1, 2, u32::MAX];
    let guest_ports = [5, 5, 6, 7, u32::MAX];
    let mut header = Header {
        source_cid: GUEST_CID,
        destination_cid: HOST_CID,
        source_port: guest_ports[usize::from(bytes.byte()) % guest_ports.len()],
        destination_port: host_ports[usize::from(bytes.byte()) % host_ports.len()],
        length: bytes.length(),
        kind: STREAM,
        operation: u16::from(bytes.byte() % 9),
        flags: u32::from(bytes.byte() % 4),
        allocation: bytes.length() << (bytes.byte() % 16),
        forwarded: bytes.length(),
    };
    match strange {
        0..8 => header.source_cid = bytes.number(8),
        8..16 => header.destination_cid = bytes.number(8),
        16..24 => header.kind = bytes.number(2) as u16,
        _ => {}
    }
    let mut packet = header.to_bytes().to_vec();
    packet.resize(packet.len() + usize::from(bytes.byte()), 1);
    packet
}

#[cfg(test)]
mod function;
