//! All streams of a device: who is connected to whom, what waits for the guest, and what the host's sockets do.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::connection::{Connection, Key, Phase, Supply};
use super::host::{Host, NO_PORT};
use super::queue::{
    CREDIT_REQUEST, CREDIT_UPDATE, DATA, HEADER, HOST_CID, Header, REQUEST, RESET, RESPONSE, SHUTDOWN,
    SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM,
};
use crate::devices::buffers::Buffers;
use crate::devices::complaint::Complaint;

/// Connections, handshakes included, at any time: bounds the descriptors and, with [`super::BUFFER`], the memory a guest
/// can make the device hold.
const MAX_CONNECTIONS: usize = 256;
/// Packets without data that may wait for the guest before it is no longer listened to: bounds what a guest that sends and
/// never receives can pile up.
const MAX_CONTROL: usize = 1024;
/// Socket events dealt with before others get their turn.
const MAX_EVENTS: usize = 64;
/// Where the host's ports for its own connections begin.
const FIRST_PORT: u32 = 1 << 30;

/// All streams of a device.
#[derive(Debug)]
pub struct Streams {
    guest_cid: u64,
    epoll: OwnedFd,
    connections: HashMap<Key, Connection>,
    host: Host,
    /// Packets without data, in the order they are sent.
    control: VecDeque<Header>,
    /// Connections with something for the guest, in turn.
    line: VecDeque<Key>,
    next_port: u32,
    complaint: Complaint,
}

impl Streams {
    /// No streams yet. Fails where no descriptor is left.
    pub fn new(guest_cid: u64, listener: Option<UnixListener>, path: Option<PathBuf>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let host = Host::new(listener, path)?;
        if let Some(listener) = host.listener() {
            epoll::add(&epoll, listener, token(NO_PORT, NO_PORT), EventFlags::IN)?;
        }
        Ok(Self {
            guest_cid,
            epoll,
            connections: HashMap::new(),
            host,
            control: VecDeque::new(),
            line: VecDeque::new(),
            next_port: FIRST_PORT,
            complaint: Complaint::default(),
        })
    }

    /// Readable when [`Streams::poll`] has something to do.
    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Whether the guest must take packets before it may send more.
    pub fn is_congested(&self) -> bool {
        self.control.len() >= MAX_CONTROL
    }

    /// A stream to `guest_port`; it ends if the guest refuses.
    pub fn connect(&mut self, guest_port: u32) -> io::Result<UnixStream> {
        self.check_room()?;
        let (ours, theirs) = UnixStream::pair()?;
        let host_port = self.new_port();
        self.request(ours, Key { host_port, guest_port }, false)?;
        Ok(theirs)
    }

    /// A stream the guest will be at the other end of when it connects to `host_port`; until then what is written waits.
    pub fn listen(&mut self, host_port: u32) -> io::Result<UnixStream> {
        self.host.expect(host_port)
    }

    /// The guest knows of nothing any more. What it has not been told of yet it will be.
    pub fn forget(&mut self) {
        self.control.retain(|packet| packet.operation == REQUEST);
        let untold: Vec<Key> = self.control.iter().map(host_key).collect();
        self.connections.retain(|key, _| untold.contains(key));
        self.line.clear();
    }

    /// A packet from the guest, `data` being what is behind its header.
    pub fn receive(&mut self, header: &Header, mut data: Buffers<'_>) {
        let key = Key { host_port: header.destination_port, guest_port: header.source_port };
        let addressed = header.source_cid == self.guest_cid && header.destination_cid == HOST_CID;
        if !addressed || header.kind != STREAM {
            return self.refuse(header);
        }
        if header.operation == REQUEST {
            return self.accept(header, key);
        }
        let Some(connection) = self.connections.get_mut(&key) else { return self.refuse(header) };
        connection.update_credit(header);
        match header.operation {
            RESPONSE if matches!(connection.phase, Phase::Requested { .. }) => self.open(key),
            DATA if connection.phase == Phase::Open => {
                let Ok(data) = data.take(header.length as usize) else { return self.reset(key) };
                if connection.take_data(data).is_err() {
                    return self.reset(key);
                }
                self.flush(key);
            }
            SHUTDOWN if connection.phase == Phase::Open => {
                let flags = header.flags;
                connection.end_by_guest(flags & SHUTDOWN_SEND != 0, flags & SHUTDOWN_RECEIVE != 0);
                self.flush(key);
            }
            CREDIT_UPDATE => {}
            CREDIT_REQUEST => self.push(key, CREDIT_UPDATE, 0),
            RESET => drop(self.connections.remove(&key)),
            _ => self.reset(key),
        }
        self.queue_up(key);
    }

    /// Fills `chain` with the next packet for the guest. Returns its length, 0 for a chain too short for any, and `None`
    /// if there is no packet.
    pub fn supply(&mut self, mut chain: Buffers<'_>) -> Option<u32> {
        if self.control.is_empty() && self.line.is_empty() {
            return None;
        }
        let Ok(mut place) = chain.take(HEADER) else { return Some(0) };
        loop {
            if let Some(packet) = self.control.pop_front() {
                return Some(place.write(&packet.to_bytes()).map_or(0, |()| HEADER as u32));
            }
            let key = self.line.pop_front()?;
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.in_line = false;
            if connection.has_supply() && chain.is_empty() {
                // A chain for headers alone: its turn comes with the next.
                self.queue_up(key);
                return Some(0);
            }
            match connection.supply(&chain) {
                Supply::Data(length) => {
                    let packet = connection.packet(self.guest_cid, key, DATA, 0, length as u32);
                    self.queue_up(key);
                    return Some(place.write(&packet.to_bytes()).map_or(0, |()| (HEADER + length) as u32));
                }
                Supply::Nothing => {}
                Supply::NoCredit if connection.credit_requested => {}
                Supply::NoCredit => {
                    connection.credit_requested = true;
                    self.push(key, CREDIT_REQUEST, 0);
                }
                Supply::End => {
                    connection.host_sends = false;
                    let both = if connection.host_receives { 0 } else { SHUTDOWN_RECEIVE };
                    self.push(key, SHUTDOWN, SHUTDOWN_SEND | both);
                }
            }
        }
    }

    /// Deals with what happened to the host's sockets.
    pub fn poll(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            outcome => outcome?,
        };
        for event in events {
            let (flags, token) = (event.flags, event.data.u64());
            let key = Key { host_port: (token >> 32) as u32, guest_port: token as u32 };
            match (key.host_port, key.guest_port) {
                // No connection has such a port: these two tokens are the listener's and a handshake's.
                (NO_PORT, NO_PORT) => self.greet(),
                (port, NO_PORT) => self.shake_hands(port),
                _ => {
                    let Some(connection) = self.connections.get_mut(&key) else { continue };
                    if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
                        connection.mark_readable();
                    }
                    self.flush(key);
                    self.queue_up(key);
                }
            }
        }
        Ok(())
    }

    /// Takes one connection off the listener; more of them make it readable again.
    fn greet(&mut self) {
        let outcome = self.host.accept().and_then(|accepted| {
            let Some(stream) = accepted else { return Ok(()) };
            self.check_room()?;
            let port = self.new_port();
            self.watch(&stream, token(port, NO_PORT))?;
            self.host.begin_handshake(port, stream);
            Ok(())
        });
        if let Err(error) = outcome {
            self.complaint.raise("accepting a connection to the guest", error);
        }
    }

    /// Goes on with a handshake; where it is complete, asks the guest.
    fn shake_hands(&mut self, host_port: u32) {
        let Some((stream, guest_port)) = self.host.shake_hands(host_port) else { return };
        // It is watched under another token from now on.
        let _ = epoll::delete(&self.epoll, &stream);
        if let Err(error) = self.request(stream, Key { host_port, guest_port }, true) {
            self.complaint.raise("connecting to the guest", error);
        }
    }

    /// Asks the guest to accept `stream`.
    fn request(&mut self, stream: UnixStream, key: Key, announce: bool) -> io::Result<()> {
        self.insert(stream, key, Phase::Requested { announce })?;
        self.push(key, REQUEST, 0);
        Ok(())
    }

    /// The guest accepted.
    fn open(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let announce = connection.phase == Phase::Requested { announce: true };
        let greeting = if announce { format!("OK {}\n", key.host_port) } else { String::new() };
        connection.phase = Phase::Open;
        // A fresh socket has room for a line; one that has not is broken.
        if connection.stream.write_all(greeting.as_bytes()).is_err() {
            self.reset(key);
        }
    }

    /// The guest wants to connect.
    fn accept(&mut self, header: &Header, key: Key) {
        let outcome = if self.connections.contains_key(&key) || key.guest_port == NO_PORT || key.host_port == NO_PORT {
            Err(ErrorKind::AddrInUse.into())
        } else {
            self.check_room().and_then(|()| self.host.open(key.host_port))
        };
        match outcome.and_then(|stream| self.insert(stream, key, Phase::Open)) {
            Ok(connection) => {
                connection.update_credit(header);
                self.push(key, RESPONSE, 0);
            }
            Err(error) => {
                self.complaint.raise(&format!("the guest cannot be connected to port {}", key.host_port), error);
                self.refuse(header);
            }
        }
    }

    fn insert(&mut self, stream: UnixStream, key: Key, phase: Phase) -> io::Result<&mut Connection> {
        let connection = Connection::new(stream, phase)?;
        self.watch(&connection.stream, token(key.host_port, key.guest_port))?;
        Ok(self.connections.entry(key).insert_entry(connection).into_mut())
    }

    /// Edge-triggered: each change is heard of once, and what it means is kept in the connection.
    fn watch(&self, stream: &UnixStream, token: EventData) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, stream.as_fd(), token, flags)?)
    }

    /// Passes on what waits for the host, and whatever follows from that.
    fn flush(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let host_stopped = connection.flush();
        let (is_over, owes_credit) = (connection.is_over(), connection.owes_credit());
        if is_over {
            return self.reset(key);
        }
        if host_stopped {
            self.push(key, SHUTDOWN, SHUTDOWN_RECEIVE);
        } else if owes_credit {
            self.push(key, CREDIT_UPDATE, 0);
        }
    }

    fn queue_up(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.has_supply()
            && !connection.in_line
        {
            connection.in_line = true;
            self.line.push_back(key);
        }
    }

    fn push(&mut self, key: Key, operation: u16, flags: u32) {
        if let Some(connection) = self.connections.get_mut(&key) {
            self.control.push_back(connection.packet(self.guest_cid, key, operation, flags, 0));
        }
    }

    /// Ends a connection at once.
    fn reset(&mut self, key: Key) {
        self.push(key, RESET, 0);
        self.connections.remove(&key);
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        if header.operation != RESET {
            self.control.push_back(Header {
                source_cid: HOST_CID,
                destination_cid: self.guest_cid,
                source_port: header.destination_port,
                destination_port: header.source_port,
                kind: header.kind,
                operation: RESET,
                ..Header::default()
            });
        }
    }

    fn check_room(&self) -> io::Result<()> {
        if self.connections.len() + self.host.handshakes() < MAX_CONNECTIONS {
            return Ok(());
        }
        Err(io::Error::other(format!("there are {MAX_CONNECTIONS} connections already")))
    }

    /// A port of the host nothing uses.
    fn new_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == NO_PORT - 1 { FIRST_PORT } else { port + 1 };
            let taken = self.host.is_greeting(port) || self.connections.keys().any(|key| key.host_port == port);
            if !taken {
                return port;
            }
        }
    }
}

/// The connection a packet to the guest belongs to.
fn host_key(packet: &Header) -> Key {
    Key { host_port: packet.source_port, guest_port: packet.destination_port }
}

fn token(host_port: u32, guest_port: u32) -> EventData {
    EventData::new_u64(u64::from(host_port) << 32 | u64::from(guest_port))
}
