//! Packets in descriptor chains (virtio 1.2 section 5.10.6): a header of 44 bytes, then the data, framed in any way.
//!
//! The `virtio-vsock` crate's packet wants header and data in at most two descriptors; Linux since 6.7 sends more.

use crate::devices::buffers::{Buffers, TooShort};

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The most bytes of data in one packet.
pub const MAX_DATA: usize = 64 << 10;
/// The host's context id, `VMADDR_CID_HOST`.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const STREAM: u16 = 1;

pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RESET: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const DATA: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

/// Flag of `SHUTDOWN`: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of `SHUTDOWN`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub source_cid: u64,
    /// Context id of the receiver.
    pub destination_cid: u64,
    /// Port of the sender.
    pub source_port: u32,
    /// Port of the receiver.
    pub destination_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// Socket type.
    pub kind: u16,
    /// What the packet is for.
    pub operation: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Bytes of buffer the sender has for this connection.
    pub allocation: u32,
    /// Bytes the sender has taken out of that buffer since the connection began, wrapping.
    pub forwarded: u32,
}

impl Header {
    /// Reads a header off the front of `chain`, and bounds what is behind it to what the header says.
    pub fn read(chain: &mut Buffers<'_>) -> Result<Self, TooShort> {
        let mut bytes = [0; HEADER];
        chain.read(&mut bytes)?;
        let number = |at: usize, length: usize| {
            bytes[at..at + length].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
        };
        Ok(Self {
            source_cid: number(0, 8),
            destination_cid: number(8, 8),
            source_port: number(16, 4) as u32,
            destination_port: number(20, 4) as u32,
            length: number(24, 4) as u32,
            kind: number(28, 2) as u16,
            operation: number(30, 2) as u16,
            flags: number(32, 4) as u32,
            allocation: number(36, 4) as u32,
            forwarded: number(40, 4) as u32,
        })
    }

    /// The header as the driver reads it.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(field.len());
            now.copy_from_slice(field);
            rest = later;
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.allocation.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }
}
