//! The control socket: by which the host asks a machine at work ([`Request`]) and is told ([`Answer`]).
//!
//! A connection is one request and its answer, each a line of JSON. One connection is served after the other, on one thread;
//! what a client can cost the next one is bounded: [`REQUEST_MAX`] bytes and [`PATIENCE`]. The socket lies in the sandbox's own
//! root, where neither the guest nor other sandboxes can reach it.

mod protocol;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

pub use self::protocol::{Answer, BalloonSize, Request, State};

/// Stack of the thread that serves the socket.
pub const STACK: usize = 128 << 10;
/// Longest request in bytes, its newline included; real ones have a tenth of it.
const REQUEST_MAX: usize = 1024;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause when no connection can be accepted: the process has too many descriptors open.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` with `answer` until `stop` is readable.
pub fn serve(listener: &UnixListener, stop: &EventFd, answer: impl Fn(Request) -> Answer) {
    // SAFETY: an eventfd is open for as long as it is borrowed here.
    let stop = unsafe { BorrowedFd::borrow_raw(stop.as_raw_fd()) };
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while let Ok(Some(())) = readable(listener, stop, None) {
        match listener.accept() {
            // Whatever goes wrong with one client is that client's own affair.
            Ok((stream, _)) => drop(converse(stream, stop, &answer)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => drop(readable(stop, stop, Some(PAUSE))),
        }
    }
}

/// Takes one request and answers it.
fn converse(mut stream: UnixStream, stop: BorrowedFd<'_>, answer: impl Fn(Request) -> Answer) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let Some(line) = read_line(&mut stream, stop)? else { return Ok(()) };
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => answer(request),
        Err(error) => Answer::Error(format!("this is no request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    // An answer is far smaller than a new socket's buffer: it is taken at once, or not worth waiting for.
    stream.write_all(&text)
}

/// The client's line; `None` if it is not sent in time, is too long, or the machine ends.
fn read_line(stream: &mut UnixStream, stop: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    let mut piece = [0; REQUEST_MAX];
    while line.len() < REQUEST_MAX {
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok(Some(line));
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() || readable(&*stream, stop, Some(rest))?.is_none() {
            return Ok(None);
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(count) => line.extend(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Waits until `source` is readable; `None` if the time is up or `stop` came first.
fn readable(source: impl AsFd, stop: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<Option<()>> {
    let timeout = timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    let mut both = [PollFd::new(&source, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    loop {
        match poll(&mut both, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if !both[1].revents().is_empty() => return Ok(None),
            Ok(ready) => return Ok((ready > 0).then_some(())),
        }
    }
}
