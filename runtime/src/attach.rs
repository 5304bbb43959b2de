//! The monitor's socket: frames of one type byte, a length (4 bytes, big endian) and that many bytes; and the client
//! behind `berth attach`.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::error::{Attempt as _, Error, Result};
use crate::relay::{self, RawTerminal};
use crate::sandbox;

/// Longest frame.
pub(crate) const MAX_FRAME: usize = 64 << 10;
/// Ctrl-P Ctrl-Q leaves the container running (docker's keys).
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To the monitor: standard input; empty: its end.
    Input = 0,
    /// To the container's client: standard output.
    Output = 1,
    /// To the client: standard error.
    Error = 2,
    /// To the monitor: rows and columns of the client's terminal, 2 bytes each.
    Resize = 3,
    /// To the client: the exit code, 4 bytes.
    Exit = 4,
    /// To the client: the process has a terminal.
    Terminal = 5,
    /// To the monitor: a signal number, 4 bytes.
    Signal = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Input, Self::Output, Self::Error, Self::Resize, Self::Exit, Self::Terminal, Self::Signal]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A frame as bytes.
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind as u8);
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Puts frames together from what arrives in pieces.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The next whole frame; an error where the other side does not speak this language.
    pub(crate) fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let Some((head, rest)) = self.0.split_at_checked(5) else { return Ok(None) };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let kind = Kind::of(head[0]).filter(|_| length <= MAX_FRAME);
        let kind = kind.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        if rest.len() < length {
            return Ok(None);
        }
        let payload = rest[..length].to_vec();
        self.0.drain(..5 + length);
        Ok(Some((kind, payload)))
    }
}

/// Joins the streams of a container whose monitor listens on `socket`. The exit code of its process, or none when the
/// person has detached.
pub fn run(socket: &Path, stdin: bool) -> Result<Option<i32>> {
    let attempt = || format!("attach to {}", socket.display());
    let mut stream = sandbox::connect_socket(socket).attempt(attempt)?;
    let signals = relay::signals()?;
    let mut client = Client { frames: Frames::default(), raw: None, keys: 0 };
    let mut input_open = stdin;
    let mut bytes = vec![0; MAX_FRAME];
    loop {
        let standard_input = io::stdin();
        let mut fds =
            vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if input_open {
            fds.push(PollFd::new(standard_input.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).attempt(attempt),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[0] {
            let count = stream.read(&mut bytes).attempt(attempt)?;
            if count == 0 {
                return Err(Error::Invalid("the container's monitor has gone away".into()));
            }
            client.frames.push(&bytes[..count]);
            if let Some(code) = client.take_frames(&mut stream)? {
                return Ok(Some(code));
            }
        }
        if ready[1] {
            for signal in relay::pending(&signals) {
                match signal {
                    Signal::SIGWINCH => client.send_size(&mut stream)?,
                    Signal::SIGCHLD | Signal::SIGPIPE => {}
                    other => send(&mut stream, Kind::Signal, &(other as i32).to_be_bytes())?,
                }
            }
        }
        if ready.get(2) == Some(&true) {
            let count = nix::unistd::read(standard_input.as_fd(), &mut bytes[..MAX_FRAME / 2]).unwrap_or(0);
            if count == 0 {
                input_open = false;
                send(&mut stream, Kind::Input, &[])?;
            } else if client.detaches(&bytes[..count]) {
                return Ok(None);
            } else {
                send(&mut stream, Kind::Input, &bytes[..count])?;
            }
        }
    }
}

struct Client {
    frames: Frames,
    raw: Option<RawTerminal>,
    /// How many of the detach keys have been typed.
    keys: usize,
}

impl Client {
    fn take_frames(&mut self, stream: &mut UnixStream) -> Result<Option<i32>> {
        while let Some((kind, payload)) = self.frames.next().attempt(|| "understand the monitor")? {
            match kind {
                // A closed stream of ours is no reason to end the container.
                Kind::Output => drop(relay::write_all(io::stdout(), &payload)),
                Kind::Error => drop(relay::write_all(io::stderr(), &payload)),
                Kind::Terminal => {
                    self.raw = RawTerminal::enter();
                    self.send_size(stream)?;
                }
                Kind::Exit => {
                    let code = payload.try_into().map(i32::from_be_bytes);
                    return Ok(Some(code.unwrap_or(125)));
                }
                Kind::Input | Kind::Resize | Kind::Signal => {}
            }
        }
        Ok(None)
    }

    fn send_size(&self, stream: &mut UnixStream) -> Result<()> {
        if self.raw.is_none() {
            return Ok(());
        }
        let Ok((rows, columns)) = sandbox::size(io::stdin()) else { return Ok(()) };
        let [a, b] = rows.to_be_bytes();
        let [c, d] = columns.to_be_bytes();
        send(stream, Kind::Resize, &[a, b, c, d])
    }

    fn detaches(&mut self, typed: &[u8]) -> bool {
        for &key in typed {
            self.keys = if key == DETACH_KEYS[self.keys] { self.keys + 1 } else { usize::from(key == DETACH_KEYS[0]) };
            if self.keys == DETACH_KEYS.len() {
                return true;
            }
        }
        false
    }
}

fn send(stream: &mut UnixStream, kind: Kind, payload: &[u8]) -> Result<()> {
    match stream.write_all(&frame(kind, payload)) {
        // It ends: the exit code is still to be read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.attempt(|| "talk to the container's monitor"),
    }
}

/// A terminal size out of a frame.
pub(crate) fn parse_size(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = payload.try_into().ok()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// A descriptor of a standard stream by number.
pub(crate) fn standard(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: descriptors 0 to 2 are open as long as the process lives; the standard library sees to it at start-up.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_pieces() {
        let bytes = [frame(Kind::Output, b"hello"), frame(Kind::Exit, &7_i32.to_be_bytes())].concat();
        let mut frames = Frames::default();
        let mut got = Vec::new();
        for byte in bytes {
            frames.push(&[byte]);
            got.extend(frames.next().unwrap());
        }
        assert_eq!(got, [(Kind::Output, b"hello".to_vec()), (Kind::Exit, vec![0, 0, 0, 7])]);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut frames = Frames::default();
        frames.push(&[9, 0, 0, 0, 0]);
        assert!(frames.next().is_err());
        let mut frames = Frames::default();
        frames.push(&[0, 255, 255, 255, 255]);
        assert!(frames.next().is_err());
    }

    #[test]
    fn ctrl_p_ctrl_q_detaches_even_in_two_reads() {
        let mut client = Client { frames: Frames::default(), raw: None, keys: 0 };
        assert!(!client.detaches(&[b'a', 0x10]));
        assert!(client.detaches(&[0x11]));
        let mut client = Client { frames: Frames::default(), raw: None, keys: 0 };
        assert!(!client.detaches(&[0x10, b'a', 0x11]));
    }
}
