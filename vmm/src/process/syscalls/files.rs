//! Open files: reading, writing, descriptors.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::host::{self, Arg};
use super::{Arguments, names, signals};
use crate::process::Result;
use crate::process::files::{Kind, OpenFile};
use crate::process::plain::word;
use crate::process::task::Task;
use crate::process::task::table::Session;
use crate::process::vm::lock;

/// Bytes that one transfer moves at most; a longer one is short, as it may always be.
const MOST_BYTES: u64 = 1 << 20;
/// Most parts of a vectored transfer.
const MOST_PARTS: u64 = 1024;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_read => read(task, a[0], &[(a[1], a[2])], None),
        libc::SYS_write => write(task, a[0], &[(a[1], a[2])], None),
        libc::SYS_pread64 => read(task, a[0], &[(a[1], a[2])], Some(a[3])),
        libc::SYS_pwrite64 => write(task, a[0], &[(a[1], a[2])], Some(a[3])),
        libc::SYS_readv => parts(task, a[1], a[2]).and_then(|parts| read(task, a[0], &parts, None)),
        libc::SYS_writev => parts(task, a[1], a[2]).and_then(|parts| write(task, a[0], &parts, None)),
        libc::SYS_preadv => parts(task, a[1], a[2]).and_then(|parts| read(task, a[0], &parts, Some(a[3]))),
        libc::SYS_pwritev => parts(task, a[1], a[2]).and_then(|parts| write(task, a[0], &parts, Some(a[3]))),
        // Flags ask for what cannot be promised here.
        libc::SYS_preadv2 | libc::SYS_pwritev2 if a[5] != 0 => Err(Errno::EOPNOTSUPP),
        libc::SYS_preadv2 => parts(task, a[1], a[2]).and_then(|parts| read(task, a[0], &parts, unless_here(a[3]))),
        libc::SYS_pwritev2 => parts(task, a[1], a[2]).and_then(|parts| write(task, a[0], &parts, unless_here(a[3]))),
        libc::SYS_close => lock(&task.descriptors).close(a[0]).map(|_| 0),
        libc::SYS_close_range => {
            let mark = a[2] & u64::from(libc::CLOSE_RANGE_CLOEXEC) != 0;
            lock(&task.descriptors).close_range(a[0], a[1], mark);
            Ok(0)
        }
        libc::SYS_dup => duplicate(task, a[0], 0, false),
        libc::SYS_dup2 if a[0] == a[1] => task.file(a[0]).map(|_| a[1]),
        libc::SYS_dup2 => task.file(a[0]).and_then(|file| lock(&task.descriptors).set(a[1], file, false)),
        libc::SYS_dup3 if a[0] == a[1] => Err(Errno::EINVAL),
        libc::SYS_dup3 => {
            let close = a[2] & libc::O_CLOEXEC as u64 != 0;
            task.file(a[0]).and_then(|file| lock(&task.descriptors).set(a[1], file, close))
        }
        libc::SYS_fcntl => control(task, a[0], a[1] as i32, a[2]),
        libc::SYS_ioctl => device_control(task, a[0], a[1], a[2]),
        libc::SYS_lseek
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_syncfs
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_fadvise64
        | libc::SYS_readahead
        | libc::SYS_sync_file_range => on_descriptor(task, number, a),
        libc::SYS_fchmod => {
            task.file(a[0]).and_then(|file| names::call(task, number, [file.as_fd().into(), a[1].into()]))
        }
        libc::SYS_flock => {
            task.file(a[0]).and_then(|file| host::blocking(task.flag(), number, [file.as_raw_fd().into(), a[1].into()]))
        }
        libc::SYS_sendfile => transfer(task, a[1], a[0], a[2], a[3]),
        libc::SYS_copy_file_range | libc::SYS_splice => between(task, number, a),
        libc::SYS_tee => task.file(a[0]).and_then(|from| {
            let to = task.file(a[1])?;
            let arguments = [from.as_raw_fd().into(), to.as_raw_fd().into(), a[2].into(), a[3].into()];
            host::blocking(task.flag(), number, arguments)
        }),
        libc::SYS_sync => Ok(0),
        _ => return None,
    })
}

/// An offset; -1 means where the file stands.
fn unless_here(offset: u64) -> Option<u64> {
    Some(offset).filter(|&offset| offset != u64::MAX)
}

/// A call whose first argument is a descriptor and the others numbers.
fn on_descriptor(task: &Task, number: i64, a: Arguments) -> Result {
    let file = task.file(a[0])?;
    host::call(number, [file.as_raw_fd().into(), a[1].into(), a[2].into(), a[3].into()])
}

/// The parts of a vectored transfer: address and length.
pub fn parts(task: &Task, address: u64, count: u64) -> Result<Vec<(u64, u64)>> {
    if count > MOST_PARTS {
        return Err(Errno::EINVAL);
    }
    let bytes = lock(&task.memory).bytes(address, count * 16)?;
    Ok(bytes.chunks_exact(16).map(|part| (word(part, 0), word(part, 8))).collect())
}

/// Reads into the parts, from `offset` or where the file stands.
pub fn read(task: &Task, descriptor: u64, parts: &[(u64, u64)], offset: Option<u64>) -> Result {
    let file = task.file(descriptor)?;
    if file.kind == Kind::Signals {
        let room = parts.iter().map(|part| part.1).fold(0, u64::saturating_add).min(MOST_BYTES);
        let records = signals::read_signals(task, &file, room as usize)?;
        scatter(task, parts, &records)?;
        return Ok(records.len() as u64);
    }
    let wanted = parts.iter().map(|part| part.1).fold(0, u64::saturating_add).min(MOST_BYTES);
    let mut buffer = vec![0; wanted as usize];
    let fd = file.as_raw_fd();
    let length = buffer.len() as u64;
    let buffer_argument = Arg::Out(&mut buffer);
    let read = match offset {
        None => host::blocking(task.flag(), libc::SYS_read, [fd.into(), buffer_argument, length.into()]),
        Some(at) => host::call(libc::SYS_pread64, [fd.into(), buffer_argument, length.into(), at.into()]),
    }?;
    scatter(task, parts, &buffer[..read as usize])?;
    Ok(read)
}

/// Writes bytes into the parts of the guest's memory, in their order.
pub fn scatter(task: &Task, parts: &[(u64, u64)], mut bytes: &[u8]) -> Result<()> {
    let mut memory = lock(&task.memory);
    for &(address, length) in parts {
        let now = bytes.len().min(length as usize);
        memory.write(address, &bytes[..now])?;
        bytes = &bytes[now..];
    }
    Ok(())
}

/// The bytes of the parts, up to what one transfer moves.
pub fn gather(task: &Task, parts: &[(u64, u64)]) -> Result<Vec<u8>> {
    let mut memory = lock(&task.memory);
    let mut bytes = Vec::new();
    for &(address, length) in parts {
        let left = MOST_BYTES - bytes.len() as u64;
        bytes.extend(memory.bytes(address, length.min(left))?);
    }
    Ok(bytes)
}

/// Writes the parts, at `offset` or where the file stands.
pub fn write(task: &Task, descriptor: u64, parts: &[(u64, u64)], offset: Option<u64>) -> Result {
    let file = task.file(descriptor)?;
    let bytes = gather(task, parts)?;
    let (fd, length) = (file.as_raw_fd(), bytes.len() as u64);
    let written = match offset {
        None => host::blocking(task.flag(), libc::SYS_write, [fd.into(), Arg::In(&bytes), length.into()]),
        Some(at) => host::call(libc::SYS_pwrite64, [fd.into(), Arg::In(&bytes), length.into(), at.into()]),
    };
    if written == Err(Errno::EPIPE) {
        signals::send_self(task, libc::SIGPIPE);
    }
    written
}

fn transfer(task: &Task, from: u64, to: u64, offset: u64, count: u64) -> Result {
    let (from, to) = (task.file(from)?, task.file(to)?);
    let count = count.min(MOST_BYTES);
    if offset == 0 {
        let arguments = [to.as_raw_fd().into(), from.as_raw_fd().into(), 0.into(), count.into()];
        return host::blocking(task.flag(), libc::SYS_sendfile, arguments);
    }
    let mut at = lock(&task.memory).word(offset)?.to_le_bytes();
    let arguments = [to.as_raw_fd().into(), from.as_raw_fd().into(), Arg::from(&mut at), count.into()];
    let moved = host::blocking(task.flag(), libc::SYS_sendfile, arguments)?;
    lock(&task.memory).write(offset, &at)?;
    Ok(moved)
}

/// `copy_file_range` and `splice`: from one file to another, each at an offset or where it stands.
fn between(task: &Task, number: i64, [from, from_offset, to, to_offset, count, flags]: Arguments) -> Result {
    let (from, to) = (task.file(from)?, task.file(to)?);
    let offset = |at: u64| match at {
        0 => Ok(None),
        at => lock(&task.memory).array::<8>(at).map(Some),
    };
    let (mut from_at, mut to_at) = (offset(from_offset)?, offset(to_offset)?);
    let (from_fd, to_fd) = (from.as_raw_fd(), to.as_raw_fd());
    let count = count.min(MOST_BYTES);
    let arguments =
        [from_fd.into(), Arg::from(&mut from_at), to_fd.into(), Arg::from(&mut to_at), count.into(), flags.into()];
    let moved = host::blocking(task.flag(), number, arguments)?;
    for (address, at) in [(from_offset, from_at), (to_offset, to_at)] {
        if let Some(at) = at {
            lock(&task.memory).write(address, &at)?;
        }
    }
    Ok(moved)
}

fn duplicate(task: &Task, descriptor: u64, from: u64, close_on_exec: bool) -> Result {
    let file = task.file(descriptor)?;
    lock(&task.descriptors).add(file, close_on_exec, from)
}

/// Adds a descriptor that the host just gave.
pub fn adopt(task: &Task, fd: u64, name: impl Into<Vec<u8>>, close_on_exec: bool) -> Result {
    // SAFETY: the host's call gave this descriptor to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    lock(&task.descriptors).add(OpenFile::new(fd, name), close_on_exec, 0)
}

fn control(task: &Task, descriptor: u64, command: i32, argument: u64) -> Result {
    let file = task.file(descriptor)?;
    let fd = file.as_raw_fd();
    match command {
        libc::F_DUPFD => duplicate(task, descriptor, argument, false),
        libc::F_DUPFD_CLOEXEC => duplicate(task, descriptor, argument, true),
        libc::F_GETFD => lock(&task.descriptors).close_on_exec(descriptor).map(u64::from),
        libc::F_SETFD => {
            let close = argument & libc::FD_CLOEXEC as u64 != 0;
            lock(&task.descriptors).set_close_on_exec(descriptor, close).map(|()| 0)
        }
        libc::F_GETFL
        | libc::F_SETFL
        | libc::F_GETPIPE_SZ
        | libc::F_SETPIPE_SZ
        | libc::F_ADD_SEALS
        | libc::F_GET_SEALS => host::call(libc::SYS_fcntl, [fd.into(), command.into(), argument.into()]),
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            let command = match command {
                libc::F_GETLK => libc::F_OFD_GETLK,
                libc::F_SETLK => libc::F_OFD_SETLK,
                libc::F_SETLKW => libc::F_OFD_SETLKW,
                other => other,
            };
            let mut lock_: [u8; 32] = lock(&task.memory).array(argument)?;
            lock_[24..28].fill(0);
            let done =
                host::blocking(task.flag(), libc::SYS_fcntl, [fd.into(), command.into(), Arg::from(&mut lock_)])?;
            if command == libc::F_OFD_GETLK {
                lock(&task.memory).write(argument, &lock_)?;
            }
            Ok(done)
        }
        libc::F_GETOWN | libc::F_SETOWN => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// What descriptors are asked for the guest: terminals, their sizes and queues, network interfaces.
pub const REQUESTS: [u64; 21] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCSBRK,
    libc::TCXONC,
    libc::TCFLSH,
    libc::TIOCGWINSZ,
    libc::TIOCSWINSZ,
    libc::TIOCGPTN,
    libc::TIOCSPTLCK,
    libc::TIOCOUTQ,
    libc::FIONREAD,
    libc::FIONBIO,
    libc::SIOCGIFNAME,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFFLAGS,
    libc::SIOCGIFADDR,
    libc::SIOCGIFNETMASK,
    libc::SIOCGIFHWADDR,
    libc::SIOCGIFMTU,
];
/// Bytes of the kernel's `struct termios`.
const TERMIOS: usize = 36;

fn device_control(task: &Task, descriptor: u64, request: u64, argument: u64) -> Result {
    let file = task.file(descriptor)?;
    let fd = file.as_raw_fd();
    let out = |length: usize| {
        let mut bytes = vec![0; length];
        let done = host::call(libc::SYS_ioctl, [fd.into(), request.into(), Arg::Out(&mut bytes)])?;
        lock(&task.memory).write(argument, &bytes)?;
        Ok(done)
    };
    let take = |length: u64| {
        let bytes = lock(&task.memory).bytes(argument, length)?;
        host::blocking(task.flag(), libc::SYS_ioctl, [fd.into(), request.into(), Arg::In(&bytes)])
    };
    match request {
        libc::TCGETS => out(TERMIOS),
        libc::TIOCGWINSZ => out(8),
        libc::FIONREAD | libc::TIOCGPTN | libc::TIOCOUTQ => out(4),
        // What a network interface is asked by name or number: `struct ifreq` in and out.
        libc::SIOCGIFNAME
        | libc::SIOCGIFINDEX
        | libc::SIOCGIFFLAGS
        | libc::SIOCGIFADDR
        | libc::SIOCGIFNETMASK
        | libc::SIOCGIFHWADDR
        | libc::SIOCGIFMTU => {
            let mut bytes: [u8; 40] = lock(&task.memory).array(argument)?;
            let done = host::call(libc::SYS_ioctl, [fd.into(), request.into(), Arg::from(&mut bytes)])?;
            lock(&task.memory).write(argument, &bytes)?;
            Ok(done)
        }
        libc::TCSETS | libc::TCSETSW | libc::TCSETSF => take(TERMIOS as u64),
        libc::TIOCSWINSZ => take(8),
        libc::FIONBIO | libc::TIOCSPTLCK => take(4),
        libc::TCSBRK | libc::TCXONC | libc::TCFLSH => {
            host::blocking(task.flag(), libc::SYS_ioctl, [fd.into(), request.into(), argument.into()])
        }
        libc::FIOCLEX => lock(&task.descriptors).set_close_on_exec(descriptor, true).map(|()| 0),
        libc::FIONCLEX => lock(&task.descriptors).set_close_on_exec(descriptor, false).map(|()| 0),
        libc::TIOCGPGRP | libc::TIOCSPGRP | libc::TIOCGSID | libc::TIOCSCTTY | libc::TIOCNOTTY => {
            // Only a terminal has these; the ids are the guest's.
            let mut ignored = [0; TERMIOS];
            host::call(libc::SYS_ioctl, [fd.into(), libc::TCGETS.into(), Arg::from(&mut ignored)])?;
            terminal_group(task, file, request, argument)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn terminal_group(task: &Task, file: Arc<OpenFile>, request: u64, argument: u64) -> Result {
    let wanted = if request == libc::TIOCSPGRP { Some(lock(&task.memory).half(argument)?.cast_signed()) } else { None };
    let mut table = lock(&task.kernel.table);
    let id = table.process(task.pid)?.session;
    // Whoever asks for what only a session's terminal has, has opened it as such.
    let session = table.sessions.entry(id).or_insert(Session { foreground: id, terminal: Some(file) });
    session.foreground = wanted.unwrap_or(session.foreground);
    let answer = if request == libc::TIOCGPGRP { session.foreground } else { id };
    drop(table);
    match request {
        libc::TIOCGPGRP | libc::TIOCGSID => lock(&task.memory).write(argument, &answer.to_le_bytes()).map(|()| 0),
        _ => Ok(0),
    }
}
