//! The process that stands for one more process of the guest in the sandbox: its streams, rights and working directory are
//! the other's, signals that come here go there, and it ends as the other one does.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use berth_runtime::confine::{self as walls, Filter};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::{Answer, Request};
use crate::process::files::{Broker, Credentials, Ids};
use crate::process::run::{Command, FORWARDED};

/// Longest answer: a message names a command, whose name is as long as a path.
const MOST_ANSWER: u64 = 64 << 10;
/// What it ends with where the guest has ended: as if killed.
const GONE: i32 = 128 + libc::SIGKILL;

/// What is to be run, and as whom.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Exec {
    pub command: Command,
    pub who: Who,
}

/// [`Credentials`] but for the broker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Who {
    users: [u32; 3],
    main_groups: [u32; 3],
    groups: Vec<u32>,
    permitted: u64,
}

impl Who {
    fn of(credentials: &Credentials) -> Self {
        let Credentials { user, group, groups, permitted, .. } = credentials;
        Self { users: user.all(), main_groups: group.all(), groups: groups.clone(), permitted: permitted.bits() }
    }

    /// With a broker.
    pub fn with(self, broker: Broker) -> Credentials {
        let ids = |[real, effective, saved]: [u32; 3]| Ids { real, effective, saved };
        Credentials {
            user: ids(self.users),
            group: ids(self.main_groups),
            groups: self.groups,
            permitted: CapabilitySet::from_bits_truncate(self.permitted),
            broker: Some(std::sync::Arc::new(broker)),
        }
    }
}

/// Why the process has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// What the command ends with.
        code: i32,
    },
    /// Something of this process's own.
    #[error("cannot {0}: {1}")]
    Setup(&'static str, io::Error),
    /// This process's own rights cannot be given up.
    #[error("cannot confine berth-vmm: {0}")]
    Confine(#[from] walls::Error),
    /// The VMM answers something else.
    #[error("the microVM answers something else than the start of a process: {0}")]
    Answer(String),
}

/// Runs a command in the guest that is reached over `stream`, to its end. There must be no other thread.
pub fn run(stream: &UnixStream, command: Command) -> Result<i32, Error> {
    let signals = SigSet::from_iter(FORWARDED);
    signals.thread_block().map_err(setup("block signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).map_err(setup("listen to signals"))?;
    let own = Credentials::own().map_err(setup("find out who this is"))?;
    let broker = Broker::start(&own).and_then(|broker| broker.socket()).map_err(setup("start a broker"))?;
    let document = document(&Exec { command, who: Who::of(&own) }).map_err(setup("describe the process"))?;
    ask(stream, &broker, &document).map_err(setup("ask the microVM for a process"))?;
    drop((broker, document));
    walls::renounce()?;
    Filter::threaded(&[libc::SYS_poll, libc::SYS_recvfrom, libc::SYS_sendto])?.load()?;

    let answers = stream.try_clone().map_err(setup("read the microVM's answers"))?;
    let mut answers = BufReader::new(answers);
    match answer(&mut answers)? {
        Some(Answer::Started(_)) => {}
        Some(Answer::Failed { message, code }) => return Err(Error::Failed { message, code }),
        Some(other) => return Err(Error::Answer(format!("{other:?}"))),
        None => return Ok(GONE),
    }
    // Whoever reads what the process writes is to see the end when that closes its streams.
    for stream in 0..3 {
        // SAFETY: nothing of this process uses its standard streams from here on.
        unsafe { libc::close(stream) };
    }
    relay(&signals, stream).map_err(setup("pass on signals"))?;
    match answer(&mut answers)? {
        Some(Answer::Ended(code)) => Ok(code),
        Some(other) => Err(Error::Answer(format!("{other:?}"))),
        None => Ok(GONE),
    }
}

fn setup<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Setup(what, error.into())
}

/// A file in memory, to be read from its beginning.
fn document(value: &Exec) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"exec", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    file.rewind()?;
    Ok(file.into())
}

fn ask(stream: &UnixStream, broker: &OwnedFd, document: &OwnedFd) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Request::Exec)?;
    line.push(b'\n');
    let descriptors: [RawFd; 5] = [0, 1, 2, broker.as_raw_fd(), document.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(&line)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == line.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// The next answer; `None` where the guest is gone.
fn answer(answers: &mut BufReader<UnixStream>) -> Result<Option<Answer>, Error> {
    let mut line = Vec::new();
    match answers.take(MOST_ANSWER).read_until(b'\n', &mut line) {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(Error::Setup("hear of the process", error)),
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| Error::Answer(error.to_string()))
}

/// Passes on signals, a byte each, until the guest has something to say.
fn relay(signals: &SignalFd, mut stream: &UnixStream) -> io::Result<()> {
    loop {
        let mut both =
            [PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) if both[0].any() == Some(true) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            match stream.write_all(&[signal.ssi_signo as u8]) {
                Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
}
