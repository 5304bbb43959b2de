//! The broker: a process beside the VMM for what takes more rights than the VMM has.
//!
//! The VMM has no capabilities and one user. What root may do in a container to files of others, and what a program may
//! do that has changed its ids, is done by a process forked before anything of the image is read. It has one thread, no
//! KVM, nothing of the guest's memory, the capabilities in [`CAPABILITIES`] as far as the sandbox grants them, and a
//! filter of its own that leaves the calls in [`CALLS`]. A request is a call with numbers, descriptors and bytes, and
//! whose rights it is made with; the answer is the call's, with a descriptor where it opens one.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::Mutex;

use berth_runtime::confine::Filter;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::credentials::{Credentials, MOST_GROUPS};
use crate::process::Result;
use crate::process::memory::PATH_MAX;
use crate::process::plain::{word, words};
use crate::process::syscalls::host::Arg;
use crate::process::task::gate;
use crate::process::vm::lock;

/// What the broker keeps of the sandbox's capabilities: rights over files and ids, low ports, raw sockets.
pub const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW);

/// What it is asked for.
const CALLS: &[i64] = &[
    libc::SYS_openat2,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmodat2,
    libc::SYS_fchmod,
    libc::SYS_fchownat,
    libc::SYS_fchown,
    libc::SYS_utimensat,
    libc::SYS_bind,
    libc::SYS_socket,
];
/// What it does beside: its own rights, its socket, its memory.
const OWN_CALLS: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_exit_group,
];

/// Bytes of a request: two paths, a full list of groups, and room.
const MOST_BYTES: usize = 16 << 10;
/// Words of a request before the groups: call, capabilities, user, group, number of groups, six arguments of two words.
const HEAD: usize = 5 + 6 * 2;
const O_NONBLOCK: u64 = libc::O_NONBLOCK as u64;
const O_PATH: u64 = libc::O_PATH as u64;
const WORD: u64 = 0;
const DESCRIPTOR: u64 = 1;
const BYTES: u64 = 2;

/// The VMM's end.
#[derive(Debug)]
pub struct Broker(Mutex<OwnedFd>);

impl Broker {
    /// Forks a broker with the rights of this process. There must be no other thread yet.
    pub fn start(own: &Credentials) -> Result<Self> {
        let kind = SockType::SeqPacket;
        let (ours, its) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: this process has one thread, so the child finds every lock free.
        match Errno::result(unsafe { libc::fork() })? {
            0 => {
                drop(ours);
                // The VMM sees what is left of it: an end of its socket.
                let _ = serve(&its, own);
                // SAFETY: ends this process, without what the VMM would do at its end.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(Self::at(ours)),
        }
    }

    /// A broker that was forked elsewhere, by the VMM's end of its socket.
    pub fn at(socket: OwnedFd) -> Self {
        Self(Mutex::new(socket))
    }

    /// The VMM's end.
    pub fn socket(&self) -> Result<OwnedFd> {
        lock(&self.0).try_clone().map_err(|_| Errno::EMFILE)
    }

    /// Makes a call with the rights of `who`.
    ///
    /// # Errors
    /// What the call gives; `EIO` if the broker is gone.
    pub fn call(&self, who: &Credentials, number: i64, arguments: &[Arg]) -> Result {
        let (request, descriptors) = encode(who, number, arguments)?;
        let socket = lock(&self.0);
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(&request)];
        sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).map_err(|_| Errno::EIO)?;
        let mut answer = [0; 8];
        let (length, opened) = receive(socket.as_fd(), &mut answer).map_err(|_| Errno::EIO)?;
        drop(socket);
        if length != answer.len() {
            return Err(Errno::EIO);
        }
        let result = i64::from_le_bytes(answer);
        if result < 0 {
            return Err(Errno::from_raw(-result as i32));
        }
        match opened.into_iter().next() {
            Some(fd) => {
                // The broker does not wait; who asked may want to.
                if let (libc::SYS_openat2, [_, _, Arg::In(how), ..]) = (number, arguments)
                    && word(how, 0) & (O_NONBLOCK | O_PATH) == 0
                {
                    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
                    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
                }
                Ok(fd.into_raw_fd() as u64)
            }
            None => Ok(result as u64),
        }
    }
}

/// A request and the descriptors that go with it.
fn encode(who: &Credentials, number: i64, arguments: &[Arg]) -> Result<(Vec<u8>, Vec<RawFd>)> {
    let mut head = vec![number.cast_unsigned()];
    head.extend(rights(who, who.capabilities()));
    let (mut descriptors, mut bytes) = (Vec::new(), Vec::new());
    for argument in arguments {
        head.extend(match argument {
            Arg::Word(word) => [WORD, *word],
            Arg::Descriptor(fd) => {
                descriptors.push(*fd);
                [DESCRIPTOR, descriptors.len() as u64 - 1]
            }
            Arg::In(part) => {
                bytes.extend_from_slice(part);
                [BYTES, part.len() as u64]
            }
            Arg::Out(_) => return Err(Errno::EINVAL),
        });
    }
    head.resize(HEAD, 0);
    head.extend(groups(who));
    let request = [words(&head), bytes].concat();
    if request.len() > MOST_BYTES { Err(Errno::E2BIG) } else { Ok((request, descriptors)) }
}

/// Whose rights a request is made with, but for the groups themselves.
fn rights(who: &Credentials, capabilities: CapabilitySet) -> [u64; 4] {
    let capabilities = (capabilities & CAPABILITIES).bits();
    [capabilities, who.user.effective.into(), who.group.effective.into(), who.groups.len() as u64]
}

fn groups(who: &Credentials) -> impl Iterator<Item = u64> {
    who.groups.iter().map(|&id| u64::from(id))
}

/// Receives bytes, and the descriptors that come with them.
pub fn receive(socket: BorrowedFd, into: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 6]);
    let mut parts = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process.
            descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, descriptors))
}

/// The broker's life: as long as the VMM's.
fn serve(socket: &OwnedFd, who: &Credentials) -> Result<()> {
    let held = rustix::thread::capabilities(None).map_err(raw)?.permitted & CAPABILITIES;
    // What a terminal sends to all is not for the broker.
    SigSet::all().thread_block()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let _ = nix::sys::prctl::set_name(c"berth-broker");
    let own = socket.as_raw_fd() as u32;
    for (first, last) in
        [(0, own.wrapping_sub(1)), (own + 1, u32::MAX)].into_iter().filter(|(first, last)| first <= last)
    {
        // SAFETY: nothing of this process is used any more but the socket.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    }
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(raw)?;
    Filter::new(&[CALLS, OWN_CALLS].concat()).load().map_err(|_| Errno::EINVAL)?;
    // With zeroes behind whatever comes.
    let mut request = vec![0; MOST_BYTES + PATH_MAX];
    // What it is itself it need not become, which takes rights.
    let mut last = Some(words(&rights(who, held).into_iter().chain(groups(who)).collect::<Vec<_>>()));
    loop {
        let (length, descriptors) = receive(socket.as_fd(), &mut request[..MOST_BYTES])?;
        if length == 0 {
            return Ok(());
        }
        let result = perform(held, &mut last, &mut request[..length], &descriptors);
        let number = word(&request, 0).cast_signed();
        let opened = match result {
            // SAFETY: the call has just given this descriptor to nobody else.
            Ok(fd) if opens(number) => Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            _ => None,
        };
        let answer = result.map_or_else(|error| -i64::from(error as i32), |value| value as i64).to_le_bytes();
        let fds: Vec<RawFd> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&answer)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
}

fn opens(number: i64) -> bool {
    matches!(number, libc::SYS_openat2 | libc::SYS_socket)
}

fn raw(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Makes the call of a request. It comes from a process that a guest may have taken over: nothing of it is trusted.
fn perform(held: CapabilitySet, last: &mut Option<Vec<u8>>, request: &mut [u8], descriptors: &[OwnedFd]) -> Result {
    let number = word(request, 0).cast_signed();
    let groups = word(request, 4 * 8) as usize;
    let payload = HEAD * 8 + groups.checked_mul(8).ok_or(Errno::EINVAL)?;
    if !CALLS.contains(&number) || groups > MOST_GROUPS || payload > request.len() {
        return Err(Errno::EINVAL);
    }
    // Whose rights these are: everything but the call and its arguments.
    let rights = [&request[8..5 * 8], &request[HEAD * 8..payload]].concat();
    if last.as_ref() != Some(&rights) {
        *last = None;
        take_rights(held, &rights)?;
        *last = Some(rights);
    }
    let mut at = payload;
    let mut raw = [0; 6];
    for (index, to) in raw.iter_mut().enumerate() {
        let value = word(request, (5 + index * 2 + 1) * 8);
        *to = match word(request, (5 + index * 2) * 8) {
            WORD => value,
            DESCRIPTOR => descriptors.get(value as usize).ok_or(Errno::EBADF)?.as_raw_fd() as u64,
            _ => {
                let end = usize::try_from(value).ok().and_then(|length| at.checked_add(length));
                let bytes = request.get_mut(at..end.ok_or(Errno::EINVAL)?).ok_or(Errno::EINVAL)?;
                // Others ask too: nothing is waited for here.
                if number == libc::SYS_openat2 && index == 2 && word(bytes, 0) & O_PATH == 0 {
                    let flags = word(bytes, 0) | O_NONBLOCK;
                    bytes.get_mut(..8).ok_or(Errno::EINVAL)?.copy_from_slice(&flags.to_le_bytes());
                }
                at += value as usize;
                bytes.as_ptr() as u64
            }
        };
    }
    // SAFETY: none of these calls writes to memory. What they read is a path or a small structure: where it does not end
    // within the request it does within the buffer, which holds nothing but requests.
    unsafe { gate::plain(number, raw) }
}

/// Takes the rights of who asks: groups, ids, and last of the capabilities those that are asked for.
fn take_rights(held: CapabilitySet, rights: &[u8]) -> Result<()> {
    let set = |effective| {
        let sets = CapabilitySets { effective, permitted: held, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).map_err(raw)
    };
    set(held)?;
    let groups: Vec<u32> = rights[4 * 8..].chunks_exact(8).map(|id| word(id, 0) as u32).collect();
    let number = |at: usize| word(rights, at * 8);
    // SAFETY: the list is as long as said; the others take numbers.
    unsafe {
        gate::plain(libc::SYS_setgroups, [groups.len() as u64, groups.as_ptr() as u64, 0, 0, 0, 0])?;
        for (call, id) in [(libc::SYS_setfsgid, number(2)), (libc::SYS_setfsuid, number(1))] {
            gate::plain(call, [id, 0, 0, 0, 0, 0])?;
            // It gives the id before, whether it worked or not.
            if gate::plain(call, [u64::MAX, 0, 0, 0, 0, 0])? as u32 != id as u32 {
                return Err(Errno::EPERM);
            }
        }
    }
    set(held & CapabilitySet::from_bits_truncate(number(0)))
}
