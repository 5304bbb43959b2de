//! One chain of text.

use std::io;
use std::os::fd::AsFd;

use rustix::event::PollFlags;

use crate::devices::buffers::Buffers;
use crate::devices::virtqueue::Served;
use crate::devices::watch::is_ready;

/// Bytes written at once: what a pipe that says it is writable takes without blocking (`PIPE_BUF`).
const WRITE: usize = 4096;
/// Bytes read at once.
const READ: usize = 4096;

/// Writes `readable` to `output` as far as it takes it without blocking. `sent` is how much of this chain has been
/// written before.
pub fn transmit(mut readable: Buffers<'_>, output: impl AsFd, sent: &mut usize) -> io::Result<Served> {
    let already = (*sent).min(readable.len());
    readable.take(already).map_err(io::Error::other)?;
    while !readable.is_empty() {
        if !is_ready(&output, PollFlags::OUT) {
            return Ok(Served::Postponed);
        }
        let now = readable.clone().take(readable.len().min(WRITE)).map_err(io::Error::other)?;
        match now.send(output.as_fd()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                *sent += written;
                readable.take(written).map_err(io::Error::other)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Served::Postponed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    *sent = 0;
    Ok(Served::Used(0))
}

/// Reads what `input` holds, if anything, into `writable`. `UnexpectedEof` at its end.
pub fn receive(mut writable: Buffers<'_>, input: impl AsFd) -> io::Result<Served> {
    if writable.is_empty() {
        return Ok(Served::Used(0));
    }
    if !is_ready(&input, PollFlags::IN) {
        return Ok(Served::Postponed);
    }
    let room = writable.take(writable.len().min(READ)).map_err(io::Error::other)?;
    match room.receive(input.as_fd()) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => Ok(Served::Used(length as u32)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(Served::Postponed)
        }
        Err(error) => Err(error),
    }
}
