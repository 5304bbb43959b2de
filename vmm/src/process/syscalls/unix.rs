//! Addresses of local sockets that are paths. The host takes no descriptor for these, so the thread's working directory
//! (no other thread shares it) is set for the call: to the parent directory where a socket is made, and to the VMM's own
//! descriptors where one is reached, so that the file that was resolved below the root is the one that is reached.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::host::{self, Arg};
use super::names;
use crate::process::Result;
use crate::process::files::OpenFile;
use crate::process::plain::short;
use crate::process::task::Task;
use crate::process::vm::lock;

/// Bytes of `sun_path`.
const MOST_PATH: usize = 108;

/// The path in an address, if it is one of a local socket with a name in the file system.
fn path(address: &[u8]) -> Option<&[u8]> {
    let name = address.get(2..).filter(|name| name.first().is_some_and(|&first| first != 0))?;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    (i32::from(short(address, 0)) == libc::AF_UNIX).then_some(&name[..end])
}

fn address(name: &[u8]) -> Result<Vec<u8>> {
    if name.len() >= MOST_PATH {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok([&(libc::AF_UNIX as u16).to_le_bytes()[..], name].concat())
}

/// Binds a socket. The name it was given is remembered: the host knows the last part only.
pub fn bind(task: &Task, socket: &OpenFile, to: &[u8]) -> Result {
    let Some(path) = path(to) else {
        let length = to.len() as u64;
        return names::call(task, libc::SYS_bind, [socket.as_fd().into(), Arg::In(to), length.into()]);
    };
    let (directory, name) = names::parent_of(task, libc::AT_FDCWD as u64, path)?;
    let own = address(&name)?;
    nix::unistd::fchdir(&directory)?;
    let length = own.len() as u64;
    let bound = host::call(libc::SYS_bind, [socket.as_raw_fd().into(), Arg::In(&own), length.into()])?;
    let mode = 0o777 & !u64::from(lock(&task.place).umask);
    let no_follow = libc::AT_SYMLINK_NOFOLLOW;
    // What could not be narrowed is as open as the directory lets it be.
    let arguments = [directory.as_raw_fd().into(), Arg::In(&name), mode.into(), no_follow.into()];
    let _ = host::call(libc::SYS_fchmodat2, arguments);
    *lock(&socket.bound) = Some(to.to_vec());
    Ok(bound)
}

/// An address of the guest as the host is to be given it, with what has to stay open until it was used.
pub fn reach(task: &Task, to: Vec<u8>) -> Result<(Vec<u8>, Option<Arc<OpenFile>>)> {
    let Some(path) = path(&to) else { return Ok((to, None)) };
    let file = names::open_path(task, libc::AT_FDCWD as u64, path, OFlag::O_PATH, 0)?;
    let descriptors = task.kernel.own_descriptors.as_ref().ok_or(Errno::EOPNOTSUPP)?;
    nix::unistd::fchdir(descriptors)?;
    let own = address(format!("{}\0", file.as_raw_fd()).as_bytes())?;
    Ok((own, Some(file)))
}
