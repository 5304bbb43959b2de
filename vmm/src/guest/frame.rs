//! What goes over the wire: a kind, a length and that many bytes.
//!
//! Numbers are little-endian. Neither end trusts the other: lengths are bounded, an unknown kind ends the connection.

use serde::{Deserialize, Serialize};

use super::start::Start;

/// Most bytes of output or input in one frame.
pub const MAX_DATA: usize = 64 << 10;
/// Most bytes of a [`Start`]: arguments and environment, which the kernel bounds to a quarter of the stack, and files.
pub const MAX_START: usize = 4 << 20;
/// Bytes in front of each frame's content.
const HEADER: usize = 5;

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// To the guest, first and once: what to run.
    Start(Box<Start>),
    /// To the guest: bytes for standard input.
    Stdin(Vec<u8>),
    /// To the guest: no more of them.
    StdinClosed,
    /// To the guest: the terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// To the guest: a signal for the process, by its number on Linux.
    Signal(i32),
    /// From the guest, first: its init is there.
    Connected,
    /// From the guest: the process has begun, and has written nothing yet.
    Started,
    /// From the guest: standard output, or all a terminal shows.
    Stdout(Vec<u8>),
    /// From the guest: standard error.
    Stderr(Vec<u8>),
    /// From the guest, last: how the process ended.
    Exited(Exit),
    /// From the guest, last: why it could not be started.
    Failed(Failure),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// The exit code a shell would give: 128+n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + i32::from(signal),
        }
    }
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// What the command ends with: 127 not found, 126 not executable, 125 anything else.
    pub code: u8,
}

/// What came is no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first byte means nothing.
    #[error("a message of the unknown kind {0}")]
    Kind(u8),
    /// It claims to be longer than its kind may be.
    #[error("a message of kind {kind} with {length} bytes, more than the {most} it may have")]
    Length {
        /// The kind.
        kind: u8,
        /// Bytes it claims to have.
        length: usize,
        /// Bytes it may have.
        most: usize,
    },
    /// Its content is not what its kind needs.
    #[error("a message of kind {kind} that makes no sense: {reason}")]
    Content {
        /// The kind.
        kind: u8,
        /// What is wrong.
        reason: String,
    },
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Start(_) => 1,
            Self::Stdin(_) => 2,
            Self::StdinClosed => 3,
            Self::Resize { .. } => 4,
            Self::Signal(_) => 5,
            Self::Stdout(_) => 6,
            Self::Stderr(_) => 7,
            Self::Exited(_) => 8,
            Self::Failed(_) => 9,
            Self::Connected => 10,
            Self::Started => 11,
        }
    }

    /// Appends the frame's bytes.
    ///
    /// # Panics
    ///
    /// If data is longer than [`MAX_DATA`]: whoever makes a frame reads no more at once.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.push(self.kind());
        bytes.extend([0; HEADER - 1]);
        match self {
            Self::Start(content) => json(bytes, content),
            Self::Stdin(data) | Self::Stdout(data) | Self::Stderr(data) => {
                assert!(data.len() <= MAX_DATA, "a frame of {} bytes", data.len());
                bytes.extend(data);
            }
            Self::StdinClosed | Self::Connected | Self::Started => {}
            Self::Resize { rows, columns } => {
                bytes.extend(rows.to_le_bytes());
                bytes.extend(columns.to_le_bytes());
            }
            Self::Signal(signal) => bytes.extend(signal.to_le_bytes()),
            Self::Exited(exit) => json(bytes, exit),
            Self::Failed(failure) => json(bytes, failure),
        }
        let length = (bytes.len() - start - HEADER) as u32;
        bytes[start + 1..start + HEADER].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes the first frame off the front of `bytes`; `None` if it is not all there yet.
    pub fn decode(bytes: &mut Vec<u8>) -> Result<Option<Self>, Malformed> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        let most = match kind {
            1 => MAX_START,
            2 | 6 | 7 | 9 => MAX_DATA,
            3..=5 | 8 | 10 | 11 => 64,
            _ => return Err(Malformed::Kind(kind)),
        };
        if length > most {
            return Err(Malformed::Length { kind, length, most });
        }
        let Some(content) = bytes.get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = Self::parse(kind, content)?;
        bytes.drain(..HEADER + length);
        Ok(Some(frame))
    }

    fn parse(kind: u8, content: &[u8]) -> Result<Self, Malformed> {
        let wrong = |reason: &dyn std::fmt::Display| Malformed::Content { kind, reason: reason.to_string() };
        Ok(match (kind, content) {
            (1, _) => Self::Start(serde_json::from_slice(content).map_err(|error| wrong(&error))?),
            (2, _) => Self::Stdin(content.to_vec()),
            (3, []) => Self::StdinClosed,
            (4, [r0, r1, c0, c1]) => {
                Self::Resize { rows: u16::from_le_bytes([*r0, *r1]), columns: u16::from_le_bytes([*c0, *c1]) }
            }
            (5, [a, b, c, d]) => Self::Signal(i32::from_le_bytes([*a, *b, *c, *d])),
            (6, _) => Self::Stdout(content.to_vec()),
            (7, _) => Self::Stderr(content.to_vec()),
            (8, _) => Self::Exited(serde_json::from_slice(content).map_err(|error| wrong(&error))?),
            (9, _) => Self::Failed(serde_json::from_slice(content).map_err(|error| wrong(&error))?),
            (10, []) => Self::Connected,
            (11, []) => Self::Started,
            _ => return Err(wrong(&format_args!("it has {} bytes", content.len()))),
        })
    }
}

fn json(bytes: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(bytes, value).expect("plain data becomes JSON, and memory takes it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Start(Box::default()),
            Frame::Stdin(vec![0; MAX_DATA]),
            Frame::Stdin(Vec::new()),
            Frame::StdinClosed,
            Frame::Resize { rows: 24, columns: 65535 },
            Frame::Signal(15),
            Frame::Connected,
            Frame::Started,
            Frame::Stdout(b"out".to_vec()),
            Frame::Stderr(b"err".to_vec()),
            Frame::Exited(Exit::Code(255)),
            Frame::Exited(Exit::Signal(9)),
            Frame::Failed(Failure { message: "no such file".to_owned(), code: 127 }),
        ]
    }

    #[test]
    fn what_is_encoded_comes_out_byte_by_byte() {
        let mut wire = Vec::new();
        for frame in all() {
            frame.encode(&mut wire);
        }
        let (mut bytes, mut frames) = (Vec::new(), Vec::new());
        for byte in wire {
            bytes.push(byte);
            while let Some(frame) = Frame::decode(&mut bytes).unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames, all());
        assert!(bytes.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |bytes: &[u8]| Frame::decode(&mut bytes.to_vec()).unwrap_err();
        assert_eq!(refused(&[0, 0, 0, 0, 0]), Malformed::Kind(0));
        assert_eq!(refused(&[12, 0, 0, 0, 0]), Malformed::Kind(12));
        assert_eq!(refused(&[6, 1, 0, 1, 0]), Malformed::Length { kind: 6, length: MAX_DATA + 1, most: MAX_DATA });
        assert!(matches!(refused(&[8, 255, 255, 255, 255]), Malformed::Length { .. }));
        assert!(matches!(refused(&[8, 2, 0, 0, 0, b'{', b'}']), Malformed::Content { kind: 8, .. }));
        assert!(matches!(refused(&[3, 1, 0, 0, 0, 1]), Malformed::Content { kind: 3, .. }));
        assert!(matches!(refused(&[11, 1, 0, 0, 0, 1]), Malformed::Content { kind: 11, .. }));
        assert!(matches!(refused(&[5, 1, 0, 0, 0, 1]), Malformed::Content { kind: 5, .. }));
        assert!(matches!(refused(&[1, 1, 0, 0, 0, b'x']), Malformed::Content { kind: 1, .. }));
        assert_eq!(Frame::decode(&mut vec![6, 3, 0, 0, 0, 1, 2]).unwrap(), None);
    }
}
