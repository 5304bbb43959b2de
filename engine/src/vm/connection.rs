//! The control socket of a microVM: a request and an answer, a line of JSON each, a connection for each.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use berth_runtime::sandbox::{Sandbox, connect_socket};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::container::Container;
use crate::error::{Error, Result};
use crate::microvm::CONTROL_SOCKET;

/// Where it is in the sandbox's root, of a Linux guest's VMM.
const SOCKET: &str = "control";
/// How long an answer may take; one whose vCPU does not come out of the guest takes half of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a microVM that has just been started may take until it listens and has loaded its kernel, and how often it is tried.
const START: (Duration, Duration) = (Duration::from_mins(1), Duration::from_millis(20));
/// Longest answer, bytes: fifteen times what real ones have.
const MAX_ANSWER: usize = 64 << 10;

/// A microVM to be asked.
pub(super) struct Connection {
    sandbox: Sandbox,
    /// Where the VMM of a process guest listens on the host: all that lies in its sandbox is the guest's.
    outside: Option<PathBuf>,
    name: String,
}

impl Connection {
    /// Of a container that runs.
    pub fn new(container: &Container) -> Result<Self> {
        let outside = container.record.options.is_process_guest();
        Ok(Self {
            sandbox: container.sandbox()?,
            outside: outside.then(|| container.live_dir().join(CONTROL_SOCKET)),
            name: container.name().to_owned(),
        })
    }

    /// As [`Connection::new`], for one that may be about to start: waits until it answers.
    pub fn ready(container: &Container) -> Result<Self> {
        let connection = Self::new(container)?;
        let (patience, interval) = START;
        let deadline = Instant::now() + patience;
        loop {
            match connection.connect() {
                Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                    thread::sleep(interval);
                }
                Err(error) => return Err(connection.failed(&error)),
                Ok(_) => break,
            }
        }
        connection.exchange(&json!("state"), deadline).map_err(|error| connection.failed(&error))?;
        Ok(connection)
    }

    /// Asks; the answer must be of the kind `expected`.
    pub fn ask(&self, request: &Value, expected: &str) -> Result<Value> {
        let line = self.exchange(request, Instant::now() + PATIENCE).map_err(|error| self.failed(&error))?;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|error| self.failed(&io::Error::other(error)))?;
        if let Some(message) = answer.get("error").and_then(Value::as_str) {
            return Err(Error::Invalid(format!("{}: {message}", self.name)));
        }
        let answer = answer.get_mut(expected).map(Value::take);
        answer.ok_or_else(|| self.failed(&io::Error::other("it answers something else")))
    }

    /// As [`Connection::ask`], for an answer that is known.
    pub fn ask_for<T: DeserializeOwned>(&self, request: &Value, expected: &str) -> Result<T> {
        serde_json::from_value(self.ask(request, expected)?).map_err(|error| self.failed(&io::Error::other(error)))
    }

    fn exchange(&self, request: &Value, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut stream = self.connect()?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        read_line(&mut stream, deadline)
    }

    fn connect(&self) -> io::Result<UnixStream> {
        match &self.outside {
            Some(path) => connect_socket(path),
            None => self.sandbox.connect_inside(Path::new(SOCKET)),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
            _ => error.to_string(),
        };
        Error::Invalid(format!("cannot ask the microVM {}: {why}", self.name))
    }
}

/// Reads up to the end of the line or of the stream.
fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while line.len() < MAX_ANSWER {
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(rest))?;
        match stream.read(&mut piece)? {
            0 => return Err(io::Error::other("it ended without an answer")),
            count => line.extend(&piece[..count]),
        }
        if line.ends_with(b"\n") {
            return Ok(line);
        }
    }
    Err(io::Error::other("its answer is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sent: &[u8], keep: bool, patience: Duration) -> io::Result<Vec<u8>> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        far.write_all(sent).unwrap();
        let kept = keep.then_some(far);
        let line = read_line(&mut near, Instant::now() + patience);
        drop(kept);
        line
    }

    #[test]
    fn an_answer_is_one_bounded_line_in_time() {
        assert_eq!(read(b"{}\n", true, PATIENCE).unwrap(), b"{}\n");
        assert!(read(b"{}", false, PATIENCE).unwrap_err().to_string().contains("without an answer"));
        assert!(read(&vec![b'x'; MAX_ANSWER], true, PATIENCE).unwrap_err().to_string().contains("too long"));
        read(b"{}", true, Duration::from_millis(10)).unwrap_err();
    }
}
