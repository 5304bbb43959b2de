//! The line between the maker of a sandbox and the process that becomes its first: a close-on-exec
//! `SOCK_SEQPACKET` pair, one message a packet. End of file without an error means the image's process runs.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::{Attempt as _, Error, Result};

/// Longest message; error texts are cut to fit.
const MAX_MESSAGE: usize = 16 << 10;

/// What the two sides say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// From the process in between ([`super::namespace::Plan::in_between`]): a descriptor of the first process comes along.
    Born,
    /// To the inside: everything outside is ready (control group, id maps, state file, hooks). A root filesystem that was
    /// mounted outside comes along.
    Go,
    /// From the inside: the pty's master comes along.
    Console,
    /// From the inside: set up; what is left is to wait for the start and to execute.
    Ready,
    /// From the inside: it failed.
    Failed { message: String, code: i32 },
}

impl From<&Error> for Message {
    fn from(error: &Error) -> Self {
        let mut message = error.to_string();
        let cut = (0..=MAX_MESSAGE / 8).rev().find(|&at| message.is_char_boundary(at));
        message.truncate(cut.unwrap_or_default());
        Self::Failed { message, code: error.exit_code() }
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends, outside and inside.
    pub(super) fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .attempt(|| "make a socket pair")?;
        Ok((Self(a), Self(b)))
    }

    /// An end that came from elsewhere.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Closes this process's end, for a copy of the process that has nothing to report.
    pub(super) fn close_here(&self) {
        // SAFETY: the process ends with `_exit` and never uses or drops this end again.
        unsafe { libc::close(self.0.as_raw_fd()) };
    }

    /// Sends a message.
    pub(super) fn send(&self, message: &Message) -> Result<()> {
        self.send_with(message, None)
    }

    /// Sends a message with a descriptor.
    pub(super) fn send_with(&self, message: &Message, fd: Option<RawFd>) -> Result<()> {
        let text = serde_json::to_vec(message).map_err(|error| Error::Invalid(error.to_string()))?;
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], control, MsgFlags::MSG_NOSIGNAL, None)
            .attempt(|| "talk to the other side of the sandbox")?;
        Ok(())
    }

    /// The next message and its descriptor; `None` at end of file.
    pub(super) fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let mut text = vec![0; MAX_MESSAGE];
        let mut control = cmsg_space!(RawFd);
        let (length, fd) = loop {
            let mut parts = [IoSliceMut::new(&mut text)];
            let got = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
            match got {
                // The other side ended with our message unread. It says so once; then comes what it said before, and the end.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(errno) => return Err(errno).attempt(|| "listen to the other side of the sandbox"),
                Ok(message) => break (message.bytes, received_fd(&message)),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&text[..length])
            .map_err(|error| Error::Invalid(format!("a message from inside the sandbox is broken: {error}")))?;
        Ok(Some((message, fd)))
    }

    /// Waits for the inside to execute the image's process: end of file; what it reports instead is the error.
    pub(super) fn wait_for_exec(&self) -> Result<()> {
        while let Some((message, _)) = self.receive()? {
            if let Message::Failed { message, code } = message {
                return Err(Error::Process { message, code });
            }
        }
        Ok(())
    }
}

fn received_fd<S>(message: &nix::sys::socket::RecvMsg<'_, '_, S>) -> Option<OwnedFd> {
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us and nobody else knows of it.
            return Some(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    None
}
