//! Where streams come from and go to on the host: the device's unix socket, those of the guest's peers, and the VMM.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// `VMADDR_PORT_ANY`: nobody's port.
pub const NO_PORT: u32 = u32::MAX;

/// The longest first line a host process may write: `CONNECT 4294967295`, and some blanks.
const MAX_LINE: usize = 32;

/// The host's side of the device.
#[derive(Debug)]
pub struct Host {
    listener: Option<UnixListener>,
    path: Option<PathBuf>,
    /// Connected to the listener, the first line not read yet; by the host port they will have.
    handshakes: HashMap<u32, (UnixStream, Vec<u8>)>,
    /// Streams of the VMM for when the guest connects to these host ports.
    expected: HashMap<u32, UnixStream>,
}

impl Host {
    /// Listens on `listener`, which is made non-blocking, and finds the guest's peers beside `path`.
    pub fn new(listener: Option<UnixListener>, path: Option<PathBuf>) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self { listener, path, handshakes: HashMap::new(), expected: HashMap::new() })
    }

    /// Where processes of the host connect to.
    pub fn listener(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// How many handshakes are under way.
    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    /// Whether a handshake is under way for `port`.
    pub fn is_greeting(&self, port: u32) -> bool {
        self.handshakes.contains_key(&port)
    }

    /// The next process of the host that wants to connect, if there is one.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        let Some(listener) = &self.listener else { return Ok(None) };
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the first line of `stream`, which is to become `port`.
    pub fn begin_handshake(&mut self, port: u32, stream: UnixStream) {
        self.handshakes.insert(port, (stream, Vec::new()));
    }

    /// Reads the line that says which port of the guest is wanted, and not a byte more. Gives back the stream and that port
    /// once it is complete; a stream that ends or says something else is closed.
    pub fn shake_hands(&mut self, port: u32) -> Option<(UnixStream, u32)> {
        let (mut stream, mut line) = self.handshakes.remove(&port)?;
        loop {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => break,
                Ok(1) if line.len() < MAX_LINE => line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.handshakes.insert(port, (stream, line));
                    return None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
        let wanted = str::from_utf8(&line).ok()?.strip_prefix("CONNECT ")?.trim_end().parse().ok()?;
        (wanted != NO_PORT).then_some((stream, wanted))
    }

    /// A stream of the VMM that the guest's next connection to `port` gets.
    pub fn expect(&mut self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.expected.insert(port, ours);
        Ok(theirs)
    }

    /// The host's end for a guest that connects to `port`.
    pub fn open(&mut self, port: u32) -> io::Result<UnixStream> {
        if let Some(stream) = self.expected.remove(&port) {
            return Ok(stream);
        }
        let mut path = self.path.clone().ok_or(ErrorKind::ConnectionRefused)?.into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(&*path)?;
        // Not blocking from the start: a listener whose backlog is full must not hold up the VM.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket.into())
    }
}
