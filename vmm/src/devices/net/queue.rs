//! One frame in one chain (virtio 1.2 section 5.1.6): a header of 12 bytes, then the frame.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use crate::devices::buffers::Buffers;
use crate::devices::virtqueue::Served;

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER: usize = 12;
/// Where in the header the number of merged buffers is. The tap leaves it alone; it is always 1.
const BUFFERS_OFFSET: usize = 10;
/// The longest frame: a segment of 64 KiB with an Ethernet header and a VLAN tag.
const MAX_FRAME: usize = (64 << 10) + 18;

/// Sends the frame in `readable`. Returns the bytes sent, header included; 0 for what is no frame. A tap that does not
/// take a frame just now loses it, as a full network does.
pub fn transmit(readable: &Buffers<'_>, tap: BorrowedFd<'_>) -> io::Result<usize> {
    if readable.len() <= HEADER || readable.len() > HEADER + MAX_FRAME {
        return Ok(0);
    }
    match readable.send(tap) {
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::InvalidInput) =>
        {
            Ok(0)
        }
        outcome => outcome,
    }
}

/// Receives the next frame into `writable`; a frame longer than that is cut off by the tap.
pub fn receive(mut writable: Buffers<'_>, tap: BorrowedFd<'_>) -> io::Result<Served> {
    if writable.len() <= HEADER {
        return Ok(Served::Used(0));
    }
    match writable.receive(tap) {
        Ok(length) if length >= HEADER => {
            let number = writable.take(BUFFERS_OFFSET).and_then(|_| writable.write(&1u16.to_le_bytes()));
            Ok(Served::Used(number.map_or(0, |()| length as u32)))
        }
        // A tap gives no less than a header.
        Ok(_) => Ok(Served::Used(0)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Served::Postponed),
        Err(error) => Err(error),
    }
}
