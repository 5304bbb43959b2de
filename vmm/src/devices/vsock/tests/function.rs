//! What a guest's kernel, the VMM and processes of the host see.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::BUFFER;
use super::super::queue::{
    CREDIT_REQUEST, CREDIT_UPDATE, DATA, HEADER, REQUEST, RESET, RESPONSE, SHUTDOWN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use super::*;
use crate::devices::DeviceState;
use crate::devices::buffers::Buffers;
use crate::devices::testing::Driver;

const RX: usize = 0;
const TX: usize = 1;

/// The guest's kernel: ports of one connection and the counters.
struct Guest {
    driver: Driver,
    host_port: u32,
    guest_port: u32,
    forwarded: u32,
}

impl Guest {
    fn new(device: Vsock) -> Self {
        let mut driver = Driver::start(device, u64::MAX);
        for _ in 0..5 {
            driver.submit(RX, &[], &[HEADER, 4096]);
        }
        Self { driver, host_port: 0, guest_port: 0, forwarded: 0 }
    }

    fn send(&mut self, operation: u16, flags: u32, data: &[u8]) {
        let header = Header {
            source_cid: GUEST_CID,
            destination_cid: HOST_CID,
            source_port: self.guest_port,
            destination_port: self.host_port,
            length: data.len() as u32,
            kind: STREAM,
            operation,
            flags,
            allocation: 8192,
            forwarded: self.forwarded,
        };
        self.driver.submit(TX, &[&header.to_bytes(), data], &[]);
        self.driver.write_register(0x50, TX as u32);
        self.driver.wait_for(|driver| driver.used(TX));
    }

    /// The next packet from the device; gives it a new buffer for the next.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (_, bytes) = self.driver.wait_for(|driver| driver.used(RX));
        self.driver.submit(RX, &[], &[HEADER, 4096]);
        self.driver.write_register(0x50, RX as u32);
        parse(&bytes)
    }

    fn expect(&mut self, operation: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.operation, operation, "{header:?}");
        assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, GUEST_CID));
        (header, data)
    }

    fn nothing_comes(&mut self) {
        self.driver.run();
        assert_eq!(self.driver.used(RX), None);
    }

    /// Accepts what the host has asked for.
    fn accept(&mut self) {
        let (request, _) = self.expect(REQUEST);
        (self.host_port, self.guest_port) = (request.source_port, request.destination_port);
        self.send(RESPONSE, 0, &[]);
    }
}

fn parse(bytes: &[u8]) -> (Header, Vec<u8>) {
    let memory = crate::devices::testing::GuardedMemory::new();
    vm_memory::Bytes::write_slice(&memory.memory, &bytes[..HEADER], vm_memory::GuestAddress(0)).unwrap();
    let slice = vm_memory::GuestMemoryBackend::get_slice(&memory.memory, vm_memory::GuestAddress(0), HEADER);
    let mut buffers = Buffers::default();
    buffers.push(slice.unwrap());
    let header = Header::read(&mut buffers).unwrap();
    let data = bytes[HEADER..].to_vec();
    assert_eq!(header.length as usize, data.len());
    (header, data)
}

fn device() -> Vsock {
    Vsock::new(VsockConfig { guest_cid: GUEST_CID, listener: None, path: None }).unwrap()
}

fn connected() -> (Guest, UnixStream) {
    let mut device = device();
    let stream = device.connect(1).unwrap();
    let mut guest = Guest::new(device);
    guest.accept();
    (guest, stream)
}

#[test]
fn tells_the_guest_its_address() {
    let mut driver = Driver::new(Box::new(device()));
    assert_eq!(u64::from_le_bytes(driver.read_config(0)), GUEST_CID);
}

#[test]
fn the_vmm_talks_to_the_guest() {
    let (mut guest, mut stream) = connected();
    assert_eq!(guest.guest_port, 1);
    stream.write_all(b"hello").unwrap();
    assert_eq!(guest.expect(DATA).1, b"hello");
    guest.send(DATA, 0, b"good day");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"good day");
}

#[test]
fn a_connection_asked_for_while_running_reaches_the_guest() {
    let mut guest = Guest::new(device());
    let mut stream = guest.driver.transport.device_as::<Vsock>().unwrap().connect(9).unwrap();
    guest.accept();
    guest.send(DATA, 0, b"x");
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_refusal_ends_the_stream() {
    let mut device = device();
    let mut stream = device.connect(1).unwrap();
    let mut guest = Guest::new(device);
    let (request, _) = guest.expect(REQUEST);
    (guest.host_port, guest.guest_port) = (request.source_port, request.destination_port);
    guest.send(RESET, 0, &[]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.nothing_comes();
}

#[test]
fn host_processes_connect_by_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let device = Vsock::new(VsockConfig { guest_cid: GUEST_CID, listener: Some(listener), path: None }).unwrap();
    let mut guest = Guest::new(device);
    let mut stream = UnixStream::connect(&path).unwrap();
    // In pieces, and with data that belongs to the guest right behind the line.
    stream.write_all(b"CONN").unwrap();
    guest.nothing_comes();
    stream.write_all(b"ECT 52\nfirst").unwrap();
    guest.accept();
    assert_eq!(guest.guest_port, 52);
    assert_eq!(guest.expect(DATA).1, b"first");
    let mut line = [0; 14];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(line[..], *format!("OK {}\n", guest.host_port).as_bytes());
    for nonsense in
        ["\n", "CONNECT \n", "CONNECT 4294967295\n", "connect 1\n", "GET / HTTP/1.1 and so on and on and on\n"]
    {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        guest.nothing_comes();
        // Closed with or without bytes of the host's left unread.
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "{nonsense}");
    }
}

#[test]
fn the_guest_connects_to_host_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(directory.path().join("vsock_77")).unwrap();
    let mut device = Vsock::new(VsockConfig { guest_cid: GUEST_CID, listener: None, path: Some(path) }).unwrap();
    let mut awaited = device.listen(5).unwrap();
    awaited.write_all(b"waiting for you").unwrap();
    let mut guest = Guest::new(device);
    (guest.host_port, guest.guest_port) = (77, 1000);
    guest.send(REQUEST, 0, &[]);
    guest.expect(RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    guest.send(DATA, 0, b"abc");
    let mut data = [0; 3];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"abc");
    guest.host_port = 78;
    guest.send(REQUEST, 0, &[]);
    guest.expect(RESET);
    guest.host_port = 5;
    guest.send(REQUEST, 0, &[]);
    guest.expect(RESPONSE);
    assert_eq!(guest.expect(DATA).1, b"waiting for you");
    guest.guest_port = 1001;
    guest.send(REQUEST, 0, &[]);
    guest.expect(RESET);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let (mut guest, mut stream) = connected();
    stream.write_all(&[1; 10_000]).unwrap();
    let received: usize = (0..3).map(|_| guest.receive().1.len()).sum();
    assert_eq!(received, 8192);
    guest.nothing_comes();
    guest.forwarded = 8192;
    guest.send(CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.expect(DATA).1.len(), 10_000 - 8192);
}

#[test]
fn a_guest_without_credit_is_asked_once() {
    let (mut guest, mut stream) = connected();
    stream.write_all(&[1; 8192 + 1]).unwrap();
    assert_eq!(guest.expect(DATA).1.len() + guest.expect(DATA).1.len(), 8192);
    guest.expect(CREDIT_REQUEST);
    stream.write_all(&[1]).unwrap();
    guest.nothing_comes();
}

#[test]
fn the_guest_hears_when_there_is_room_again() {
    let (mut guest, mut stream) = connected();
    let mut sent = 0;
    // The device forwards as fast as the socket takes it: half the buffer, and the guest hears.
    let update = loop {
        guest.send(DATA, 0, &[2; 4096]);
        sent += 4096;
        if let Some((_, bytes)) = guest.driver.used(RX) {
            break parse(&bytes).0;
        }
    };
    assert_eq!((update.operation, update.forwarded), (CREDIT_UPDATE, sent));
    assert_eq!(update.allocation, BUFFER);
    let mut data = vec![0; sent as usize];
    stream.read_exact(&mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 2));
}

#[test]
fn what_the_host_does_not_read_waits_within_bounds() {
    let (mut guest, mut stream) = connected();
    let mut sent = 0usize;
    // Beyond the socket's and the device's own buffer the guest has no credit, and a guest that goes on is cut off.
    let cut_off = loop {
        guest.send(DATA, 0, &[3; 8192]);
        sent += 8192;
        if let Some((_, bytes)) = guest.driver.used(RX) {
            guest.driver.submit(RX, &[], &[HEADER, 4096]);
            let header = parse(&bytes).0;
            if header.operation == RESET {
                break header;
            }
            assert_eq!(header.operation, CREDIT_UPDATE);
        }
    };
    assert!(sent as u32 - cut_off.forwarded > BUFFER);
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert_eq!(data.len(), cut_off.forwarded as usize);
}

#[test]
fn waiting_data_follows_when_the_host_reads() {
    let (mut guest, mut stream) = connected();
    let data: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    let (mut sent, mut forwarded, mut received) = (0usize, 0u32, Vec::<u8>::new());
    let mut buffer = vec![0; 30_000];
    while received.len() < data.len() {
        let credit = (BUFFER - (sent as u32 - forwarded)) as usize;
        let length = credit.min(8192).min(data.len() - sent);
        if length > 0 {
            guest.send(DATA, 0, &data[sent..sent + length]);
            sent += length;
        } else {
            let read = stream.read(&mut buffer).unwrap();
            received.extend(&buffer[..read]);
            guest.driver.run();
        }
        while let Some((_, bytes)) = guest.driver.used(RX) {
            guest.driver.submit(RX, &[], &[HEADER, 4096]);
            let header = parse(&bytes).0;
            assert_eq!(header.operation, CREDIT_UPDATE);
            forwarded = header.forwarded;
        }
    }
    assert_eq!(received, data);
}

#[test]
fn the_host_ends_its_direction() {
    let (mut guest, mut stream) = connected();
    stream.write_all(b"last").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.expect(DATA).1, b"last");
    assert_eq!(guest.expect(SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(DATA, 0, b"answer");
    guest.send(SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    guest.expect(RESET);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn the_guest_ends_its_direction_and_still_receives() {
    let (mut guest, mut stream) = connected();
    guest.send(DATA, 0, b"question");
    guest.send(SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(DATA).1, b"answer");
}

#[test]
fn a_host_that_goes_away_is_noticed_both_ways() {
    let (mut guest, stream) = connected();
    drop(stream);
    assert_eq!(guest.expect(SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(DATA, 0, b"too late");
    assert_eq!(guest.expect(SHUTDOWN).0.flags, SHUTDOWN_RECEIVE);
    guest.send(RESET, 0, &[]);
    guest.send(DATA, 0, b"forgotten");
    guest.expect(RESET);
}

#[test]
fn a_flood_without_room_for_answers_is_held_up_not_piled_up() {
    let mut driver = Driver::start(device(), u64::MAX);
    let header = Header { source_cid: GUEST_CID, destination_cid: HOST_CID, operation: DATA, ..Header::default() };
    let mut answered = 0;
    while answered < 2000 {
        driver.submit(TX, &[&header.to_bytes()], &[]);
        driver.kick(TX);
        if driver.used(TX).is_none() {
            break;
        }
        answered += 1;
    }
    assert_eq!(answered, 1024);
    // With room for one answer, one more packet is heard.
    driver.submit(RX, &[], &[HEADER]);
    driver.kick(RX);
    assert_eq!(parse(&driver.used(RX).unwrap().1).0.operation, RESET);
    driver.used(TX).unwrap();
}

#[test]
fn connections_are_bounded() {
    let mut device = device();
    let streams: Vec<_> = (0..256).map(|port| device.connect(port).unwrap()).collect();
    assert!(device.connect(256).is_err());
    drop(streams);
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let (guest, mut stream) = connected();
    let mut driver = guest.driver.migrate(|state| {
        let DeviceState::Vsock(state) = state else { panic!("{state:?}") };
        let config = VsockConfig { guest_cid: 0, listener: None, path: None };
        Box::new(Vsock::restore(config, state).unwrap())
    });
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    driver.submit(2, &[], &[8]);
    driver.kick(2);
    assert_eq!(driver.used(2).unwrap().1, [0; 4]);
}
