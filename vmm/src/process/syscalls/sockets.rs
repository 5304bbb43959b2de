//! Sockets, in the sandbox's network namespace.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::host::{self, Arg};
use super::pipes::pair;
use super::{Arguments, files, names, unix};
use crate::process::Result;
use crate::process::task::Task;
use crate::process::vm::lock;

/// The kinds of addresses there are sockets for.
pub const FAMILIES: [u64; 4] =
    [libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_NETLINK as u64];
const CLOSE: u64 = libc::SOCK_CLOEXEC as u64;
/// Bytes of `struct sockaddr_storage`.
const ADDRESS: u64 = 128;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    Some(match number {
        libc::SYS_socket | libc::SYS_socketpair if !FAMILIES.contains(&a[0]) => Err(Errno::EAFNOSUPPORT),
        libc::SYS_socket => names::call(task, number, [a[0].into(), (a[1] | CLOSE).into(), a[2].into()])
            .and_then(|fd| files::adopt(task, fd, "socket:", a[1] & CLOSE != 0)),
        libc::SYS_socketpair if a[0] != libc::AF_UNIX as u64 => Err(Errno::EOPNOTSUPP),
        libc::SYS_socketpair => {
            let mut ends = [0; 8];
            host::call(number, [a[0].into(), (a[1] | CLOSE).into(), a[2].into(), Arg::from(&mut ends)])
                .and_then(|_| pair(task, a[3], &ends, "socket:", a[1] & CLOSE != 0))
        }
        libc::SYS_bind => task.file(a[0]).and_then(|file| unix::bind(task, &file, &address(task, a[1], a[2])?)),
        libc::SYS_connect => task.file(a[0]).and_then(|file| {
            let (address, _held) = unix::reach(task, address(task, a[1], a[2])?)?;
            let length = address.len() as u64;
            host::blocking(task.flag(), number, [file.as_raw_fd().into(), Arg::In(&address), length.into()])
        }),
        libc::SYS_listen | libc::SYS_shutdown => {
            task.file(a[0]).and_then(|file| host::call(number, [file.as_raw_fd().into(), a[1].into()]))
        }
        libc::SYS_accept => accept(task, a, 0),
        libc::SYS_accept4 => accept(task, a, a[3]),
        libc::SYS_getsockname | libc::SYS_getpeername => task.file(a[0]).and_then(|file| {
            let fd = file.as_raw_fd();
            if number == libc::SYS_getsockname
                && let Some(bound) = &*lock(&file.bound)
            {
                return with_address(task, a[1], a[2], |name, length| Ok(give(bound, name, length)));
            }
            with_address(task, a[1], a[2], |name, length| host::call(number, [fd.into(), name, length]))
        }),
        libc::SYS_sendto => {
            files::gather(task, &[(a[1], a[2])]).and_then(|bytes| send(task, a[0], &bytes, a[3], (a[4], a[5])))
        }
        libc::SYS_recvfrom => receive(task, a),
        _ => return None,
    })
}

/// The bytes of a socket address.
pub fn address(task: &Task, at: u64, length: u64) -> Result<Vec<u8>> {
    if length > ADDRESS {
        return Err(Errno::EINVAL);
    }
    lock(&task.memory).bytes(at, length)
}

/// Fills an address and its length as a call of the host would.
fn give(address: &[u8], name: Arg, length: Arg) -> u64 {
    if let (Arg::Out(name), Arg::Out(length)) = (name, length) {
        let given = address.len().min(name.len());
        name[..given].copy_from_slice(&address[..given]);
        length.copy_from_slice(&(address.len() as u32).to_le_bytes());
    }
    0
}

/// Has a call fill an address and its length, and passes both to the guest.
fn with_address(task: &Task, at: u64, length_at: u64, call: impl FnOnce(Arg, Arg) -> Result) -> Result {
    if at == 0 {
        return call(Arg::Word(0), Arg::Word(0));
    }
    let room = u64::from(lock(&task.memory).half(length_at)?).min(ADDRESS);
    let mut name = [0; ADDRESS as usize];
    let mut length = (room as u32).to_le_bytes();
    let done = call(Arg::from(&mut name), Arg::from(&mut length))?;
    let used = u64::from(u32::from_le_bytes(length)).min(room);
    let mut memory = lock(&task.memory);
    memory.write(at, &name[..used as usize])?;
    memory.write(length_at, &length)?;
    Ok(done)
}

fn accept(task: &Task, a: Arguments, flags: u64) -> Result {
    let file = task.file(a[0])?;
    let fd = with_address(task, a[1], a[2], |name, length| {
        let arguments = [file.as_raw_fd().into(), name, length, (flags | CLOSE).into()];
        host::blocking(task.flag(), libc::SYS_accept4, arguments)
    })?;
    files::adopt(task, fd, "socket:", flags & CLOSE != 0)
}

fn send(task: &Task, descriptor: u64, bytes: &[u8], flags: u64, (to, to_length): (u64, u64)) -> Result {
    let file = task.file(descriptor)?;
    let (to, _held) = if to == 0 { (Vec::new(), None) } else { unix::reach(task, address(task, to, to_length)?)? };
    let name = if to.is_empty() { Arg::Word(0) } else { Arg::In(&to) };
    let (length, name_length) = (bytes.len() as u64, to.len() as u64);
    // The signal is the guest's, not the VMM's.
    let quiet = flags | libc::MSG_NOSIGNAL as u64;
    let arguments = [file.as_raw_fd().into(), Arg::In(bytes), length.into(), quiet.into(), name, name_length.into()];
    let sent = host::blocking(task.flag(), libc::SYS_sendto, arguments);
    if sent == Err(Errno::EPIPE) && flags & libc::MSG_NOSIGNAL as u64 == 0 {
        super::signals::send_self(task, libc::SIGPIPE);
    }
    sent
}

fn receive(task: &Task, [descriptor, to, length, flags, name, name_length]: Arguments) -> Result {
    let file = task.file(descriptor)?;
    let mut buffer = vec![0; length.min(1 << 20) as usize];
    let length = buffer.len() as u64;
    let read = with_address(task, name, name_length, |name, name_length| {
        let out = Arg::Out(&mut buffer);
        let arguments = [file.as_raw_fd().into(), out, length.into(), flags.into(), name, name_length];
        host::blocking(task.flag(), libc::SYS_recvfrom, arguments)
    })?;
    lock(&task.memory).write(to, &buffer[..buffer.len().min(read as usize)])?;
    Ok(read)
}
