//! One more process in the guest, as the VMM sees it: begun with what the client has sent, sent the signals that the client
//! gets, and ended where the client is.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use super::client::Exec;
use super::{Answer, STACK, send};
use crate::process::files::Broker;
use crate::process::task::Kernel;
use crate::process::vm::lock;

/// Bytes of a description: as much as arguments and environment may have, as JSON writes bytes.
const MOST_BYTES: u64 = 16 << 20;

/// Most processes that are begun from outside at once; each takes a thread or two of the VMM beside its own.
const MOST_SESSIONS: usize = 32;

/// Counts the processes that were begun from outside.
#[derive(Debug, Default)]
pub struct Sessions(AtomicUsize);

/// One of them, as long as this lives.
#[derive(Debug)]
struct Session<'a>(&'a Sessions);

impl Sessions {
    /// One more; `None` where there are as many as there may be.
    fn begin(&self) -> Option<Session<'_>> {
        let more = |count| (count < MOST_SESSIONS).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Session(self))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection of which one more process was asked.
pub fn serve(
    kernel: &Arc<Kernel>,
    sessions: &Sessions,
    stream: &UnixStream,
    descriptors: Vec<OwnedFd>,
) -> io::Result<()> {
    let Some(_session) = sessions.begin() else {
        let message =
            format!("exec has begun {MOST_SESSIONS} commands in this microVM that still run: wait for one to end");
        return send(stream, &Answer::Failed { message, code: 125 });
    };
    let invalid = |_| io::Error::from(ErrorKind::InvalidData);
    let [stdin, stdout, stderr, broker, document] = <[OwnedFd; 5]>::try_from(descriptors).map_err(invalid)?;
    let mut text = Vec::new();
    File::from(document).take(MOST_BYTES).read_to_end(&mut text)?;
    let Exec { command, who } = serde_json::from_slice(&text)?;
    let who = Arc::new(who.with(Broker::at(broker)));
    // What can fail does so before there is a process that somebody has to look after.
    let signals = stream.try_clone()?;
    signals.set_read_timeout(None)?;
    let pid = match kernel.run(command, who, [stdin, stdout, stderr].map(Some)) {
        Ok(pid) => pid,
        Err(error) => return send(stream, &Answer::Failed { message: error.to_string(), code: error.exit_code() }),
    };
    let ended = Arc::new(AtomicBool::new(false));
    let has_reader = pass_signals(kernel.clone(), signals, pid, ended.clone());
    // Who does not hear of its beginning is gone, of which the reader hears.
    let _ = send(stream, &Answer::Started(pid));
    if has_reader.is_err() {
        lock(&kernel.table).pass_on(pid, libc::SIGKILL);
    }
    let status = kernel.wait(pid)?;
    let mut table = lock(&kernel.table);
    // From here on the id may be another's.
    ended.store(true, Ordering::Relaxed);
    table.processes.remove(&pid);
    drop(table);
    send(stream, &Answer::Ended(status.exit_code()))?;
    stream.shutdown(Shutdown::Both)
}

/// Passes on the signals that come from the client, a byte each, and SIGKILL at its end.
fn pass_signals(kernel: Arc<Kernel>, mut stream: UnixStream, pid: i32, ended: Arc<AtomicBool>) -> io::Result<()> {
    let pass_on = move || {
        let mut signal = [0];
        loop {
            let number = match stream.read(&mut signal) {
                Ok(1) => i32::from(signal[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => libc::SIGKILL,
            };
            let mut table = lock(&kernel.table);
            if ended.load(Ordering::Relaxed) {
                return;
            }
            if (1..=64).contains(&number) {
                table.pass_on(pid, number);
            }
            if number == libc::SIGKILL {
                return;
            }
        }
    };
    Builder::new().stack_size(STACK).spawn(pass_on).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_counted_while_they_last() {
        let sessions = Sessions::default();
        let mut all: Vec<_> = std::iter::from_fn(|| sessions.begin()).collect();
        assert_eq!(all.len(), MOST_SESSIONS);
        all.pop();
        assert!(sessions.begin().is_some());
        all.extend(sessions.begin());
        assert!(sessions.begin().is_none());
    }
}
