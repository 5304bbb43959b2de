//! One stream between a port of the guest and a unix socket.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::queue::{HOST_CID, Header, MAX_DATA, STREAM};
use crate::devices::buffers::Buffers;

/// Bytes from the guest that may wait for the host to read them, per connection: the credit the guest is given.
pub const BUFFER: u32 = 64 << 10;

/// Which connection: the ports at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// At the host.
    pub host_port: u32,
    /// At the guest.
    pub guest_port: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest has been asked, and is to be announced to the host (`OK <port>`) or not.
    Requested { announce: bool },
    /// Data flows.
    Open,
}

/// What a connection has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// So many bytes were put into the chain.
    Data(usize),
    /// Nothing now.
    Nothing,
    /// Perhaps something, but the guest has no room.
    NoCredit,
    /// The host will send no more.
    End,
}

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// One stream.
#[derive(Debug)]
pub struct Connection {
    /// The host's end, not blocking.
    pub stream: UnixStream,
    /// How far it is.
    pub phase: Phase,
    /// Whether it stands in the line of those with something for the guest.
    pub in_line: bool,
    /// Whether the guest was asked for credit since it last had any.
    pub credit_requested: bool,
    /// Until the host has ended its direction and the guest was told.
    pub host_sends: bool,
    /// Until the host takes no more; what the guest sends then is dropped.
    pub host_receives: bool,
    guest_sends: bool,
    guest_receives: bool,
    readable: bool,
    sent: Wrapping<u32>,
    guest_allocation: u32,
    guest_forwarded: Wrapping<u32>,
    /// From the guest, for the host.
    waiting: VecDeque<u8>,
    forwarded: Wrapping<u32>,
    told_forwarded: Wrapping<u32>,
}

impl Connection {
    /// A connection over `stream` that nothing has been sent over. Fails where the stream cannot be made non-blocking.
    pub fn new(stream: UnixStream, phase: Phase) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            phase,
            in_line: false,
            credit_requested: false,
            host_sends: true,
            host_receives: true,
            guest_sends: true,
            guest_receives: true,
            readable: false,
            sent: Wrapping(0),
            guest_allocation: 0,
            guest_forwarded: Wrapping(0),
            waiting: VecDeque::new(),
            forwarded: Wrapping(0),
            told_forwarded: Wrapping(0),
        })
    }

    /// A packet of this connection, which also tells the guest its credit.
    pub fn packet(&mut self, guest_cid: u64, key: Key, operation: u16, flags: u32, length: u32) -> Header {
        self.told_forwarded = self.forwarded;
        Header {
            source_cid: HOST_CID,
            destination_cid: guest_cid,
            source_port: key.host_port,
            destination_port: key.guest_port,
            length,
            kind: STREAM,
            operation,
            flags,
            allocation: BUFFER,
            forwarded: self.forwarded.0,
        }
    }

    /// The guest says how much room it has; every packet of its does.
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_allocation = header.allocation;
        self.guest_forwarded = Wrapping(header.forwarded);
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Whether the guest should hear soon that it may send more.
    pub fn owes_credit(&self) -> bool {
        (self.forwarded - self.told_forwarded).0 >= BUFFER / 2
    }

    /// The socket has become readable, or has ended.
    pub fn mark_readable(&mut self) {
        self.readable = true;
    }

    /// Whether there may be something for the guest.
    pub fn has_supply(&self) -> bool {
        self.phase == Phase::Open && self.readable && self.host_sends && self.guest_receives
    }

    /// Moves what the socket holds into `room`, as far as the guest's credit goes.
    pub fn supply(&mut self, room: &Buffers<'_>) -> Supply {
        if !self.has_supply() {
            return Supply::Nothing;
        }
        let length = room.len().min(MAX_DATA).min(self.credit() as usize);
        if length == 0 {
            return Supply::NoCredit;
        }
        let Ok(room) = room.clone().take(length) else { return Supply::Nothing };
        match room.receive(self.stream.as_fd()) {
            Ok(0) => Supply::End,
            Ok(read) => {
                self.sent += Wrapping(read as u32);
                Supply::Data(read)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Supply::Nothing
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Supply::Nothing,
            Err(_) => Supply::End,
        }
    }

    /// Data from the guest.
    pub fn take_data(&mut self, mut data: Buffers<'_>) -> Result<(), Overrun> {
        if self.waiting.len() + data.len() > BUFFER as usize || !self.guest_sends {
            return Err(Overrun);
        }
        if !self.host_receives {
            self.forwarded += Wrapping(data.len() as u32);
            return Ok(());
        }
        if self.waiting.is_empty() {
            // An error shows again, and is dealt with, when the rest is flushed.
            let written = data.send(self.stream.as_fd()).unwrap_or(0);
            data.take(written).map_err(|_| Overrun)?;
            self.forwarded += Wrapping(written as u32);
        }
        let mut rest = vec![0; data.len()];
        data.read(&mut rest).map_err(|_| Overrun)?;
        self.waiting.extend(rest);
        Ok(())
    }

    /// Writes what waits for the host, as far as it goes. Returns whether the host has just stopped receiving.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match self.stream.write(front) {
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.forwarded += Wrapping(written as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.forwarded += Wrapping(self.waiting.len() as u32);
                    self.waiting = VecDeque::new();
                    return std::mem::replace(&mut self.host_receives, false);
                }
            }
        }
        if !self.guest_sends {
            // Fails where the host has gone, which is what it is to be told.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        false
    }

    /// The guest ends one direction or both.
    pub fn end_by_guest(&mut self, sends_no_more: bool, receives_no_more: bool) {
        self.guest_sends &= !sends_no_more;
        if receives_no_more {
            self.guest_receives = false;
            // As above.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// Whether nothing is left to be done in either direction.
    pub fn is_over(&self) -> bool {
        !self.guest_sends && !self.guest_receives && self.waiting.is_empty()
    }

    /// Bytes the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_allocation.saturating_sub((self.sent - self.guest_forwarded).0)
    }
}
