//! A connection that never blocks: bytes wait here until the other end takes them.

use std::io::{self, ErrorKind, Read, Write};

use super::frame::{Frame, MAX_DATA, Malformed};

/// Bytes that wait to be sent before no more are produced.
const FULL: usize = 2 * MAX_DATA;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end sends what is no message.
    #[error("the other end sent {0}")]
    Malformed(#[from] Malformed),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One end of a stream that is set to non-blocking.
#[derive(Debug)]
pub struct Link<S> {
    stream: S,
    input: Vec<u8>,
    output: Vec<u8>,
    is_open: bool,
}

impl<S: Read + Write> Link<S> {
    /// Over a stream whose reads and writes return at once.
    pub fn new(stream: S) -> Self {
        Self { stream, input: Vec::new(), output: Vec::new(), is_open: true }
    }

    /// The stream, to wait for.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Reads what is there, up to one frame's worth, to be taken by [`Self::take`].
    pub fn receive(&mut self) -> Result<(), LinkError> {
        let mut piece = vec![0; MAX_DATA];
        match self.stream.read(&mut piece) {
            Ok(0) => self.is_open = false,
            Ok(count) => self.input.extend(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.is_open = false,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the other end may still send.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The next frame that has arrived whole.
    pub fn take(&mut self) -> Result<Option<Frame>, LinkError> {
        Ok(Frame::decode(&mut self.input)?)
    }

    /// Sends a frame, as far as the other end takes it; the rest waits for [`Self::flush`].
    pub fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        frame.encode(&mut self.output);
        self.flush()
    }

    /// Sends what waits, as far as the other end takes it. All of it goes to one that takes no more: what that has said before can
    /// still be read.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    sent = self.output.len();
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.output.drain(..sent);
        Ok(())
    }

    /// Whether something waits to be sent.
    pub fn is_waiting(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether so much waits that no more should be produced.
    pub fn is_full(&self) -> bool {
        self.output.len() >= FULL
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_said_before_hanging_up_is_heard() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        Link::new(theirs).send(&Frame::Stdout(b"last words".to_vec())).unwrap();
        let mut link = Link::new(ours);
        link.send(&Frame::StdinClosed).unwrap();
        assert!(!link.is_waiting());
        link.receive().unwrap();
        assert_eq!(link.take().unwrap(), Some(Frame::Stdout(b"last words".to_vec())));
    }
}
