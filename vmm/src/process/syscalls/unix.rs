//! Addresses of local sockets that are paths. The host takes no descriptor for these, so the thread's working directory
//! (no other thread shares it) is set for the call: to the parent directory where a socket is made, and to the VMM's own
//! descriptors where one is reached, so that the file that was resolved below the root is the one that is reached.
//! Watches of files (inotify(7)) are made in the same way.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::host::{self, Arg};
use super::{Arguments, files, names};
use crate::process::Result;
use crate::process::files::OpenFile;
use crate::process::plain::short;
use crate::process::task::Task;
use crate::process::vm::lock;

/// Serves watching files.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    Some(match number {
        libc::SYS_inotify_init => watcher(task, 0),
        libc::SYS_inotify_init1 => watcher(task, a[0]),
        libc::SYS_inotify_add_watch => task.file(a[0]).and_then(|watcher| {
            let mask = a[2] as u32;
            let only = |bit: u32, flag| if mask & bit == 0 { OFlag::empty() } else { flag };
            let flags = only(libc::IN_DONT_FOLLOW, OFlag::O_NOFOLLOW) | only(libc::IN_ONLYDIR, OFlag::O_DIRECTORY);
            let file = names::open_file(task, libc::AT_FDCWD as u64, a[1], OFlag::O_PATH | flags, 0)?;
            let path = by_descriptor(task, &file)?;
            // The link in /proc has to be followed.
            let mask = mask & !(libc::IN_DONT_FOLLOW | libc::IN_ONLYDIR);
            host::call(number, [watcher.as_raw_fd().into(), Arg::In(&path), u64::from(mask).into()])
        }),
        libc::SYS_inotify_rm_watch => {
            task.file(a[0]).and_then(|watcher| host::call(number, [watcher.as_raw_fd().into(), a[1].into()]))
        }
        _ => return None,
    })
}

fn watcher(task: &Task, flags: u64) -> Result {
    let fd = host::call(libc::SYS_inotify_init1, [(flags | libc::IN_CLOEXEC as u64).into()])?;
    files::adopt(task, fd, "anon_inode:inotify", flags & libc::IN_CLOEXEC as u64 != 0)
}

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
    let own = address(&by_descriptor(task, &file)?)?;
    Ok((own, Some(file)))
}

/// A path by which the host finds an open file, from this thread's working directory, with its zero.
pub fn by_descriptor(task: &Task, file: &OpenFile) -> Result<Vec<u8>> {
    let process = task.kernel.own.as_ref().ok_or(Errno::EOPNOTSUPP)?;
    nix::unistd::fchdir(process)?;
    Ok(format!("fd/{}\0", file.as_raw_fd()).into_bytes())
}
