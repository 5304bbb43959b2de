//! What takes a path. A path is resolved below the root to a descriptor first; the call is made on that.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::Arguments;
use super::host::{self, Arg, terminated};
use crate::process::Result;
use crate::process::files::proc::{self, Entry};
use crate::process::files::{Kind, OpenFile, join, normal};
use crate::process::plain::{word, words};
use crate::process::task::Task;
use crate::process::vm::lock;

const HERE: u64 = libc::AT_FDCWD as i64 as u64;
const NO_FOLLOW: u64 = libc::AT_SYMLINK_NOFOLLOW as u64;
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;
const STAT: usize = size_of::<libc::stat>();
/// Where the mode stands in `struct stat`.
const MODE: usize = std::mem::offset_of!(libc::stat, st_mode);
/// And in `struct statx`.
const STATX_MODE: usize = std::mem::offset_of!(libc::statx, stx_mode);
const STATX: usize = size_of::<libc::statx>();
const STATFS: usize = size_of::<libc::statfs>();
/// Where the processes are.
const PROC: &[u8] = b"/proc";
/// Most bytes of directory entries in one call.
const MOST_ENTRIES: u64 = 256 << 10;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    Some(match number {
        libc::SYS_open => open(task, HERE, a[0], a[1], a[2]),
        libc::SYS_creat => open(task, HERE, a[0], (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64, a[1]),
        libc::SYS_openat => open(task, a[0], a[1], a[2], a[3]),
        libc::SYS_stat => stat(task, HERE, a[0], a[1], 0),
        libc::SYS_lstat => stat(task, HERE, a[0], a[1], NO_FOLLOW),
        libc::SYS_fstat => task.file(a[0]).and_then(|file| stat_file(task, &file, a[1])),
        libc::SYS_newfstatat => stat(task, a[0], a[1], a[2], a[3]),
        libc::SYS_statx => target(task, a[0], a[1], a[2]).and_then(|fd| {
            let flags = a[2] & !NO_FOLLOW | EMPTY_PATH;
            let mut bytes = [0; STATX];
            let out = Arg::from(&mut bytes);
            host::call(number, [fd.as_raw_fd().into(), Arg::In(b"\0"), flags.into(), a[3].into(), out])?;
            if let Some(mode) = fd.kind.mode() {
                bytes[STATX_MODE..STATX_MODE + 2].copy_from_slice(&(mode as u16).to_le_bytes());
            }
            lock(&task.memory).write(a[4], &bytes).map(|()| 0)
        }),
        libc::SYS_statfs => target(task, HERE, a[0], 0).and_then(|fd| {
            fill::<STATFS>(task, a[1], |out| host::call(libc::SYS_fstatfs, [fd.as_raw_fd().into(), out]))
        }),
        libc::SYS_fstatfs => task
            .file(a[0])
            .and_then(|file| fill::<STATFS>(task, a[1], |out| host::call(number, [file.as_raw_fd().into(), out]))),
        libc::SYS_access => access(task, HERE, a[0], a[1], 0),
        libc::SYS_faccessat => access(task, a[0], a[1], a[2], 0),
        libc::SYS_faccessat2 => access(task, a[0], a[1], a[2], a[3]),
        libc::SYS_readlink => read_link(task, HERE, a[0], a[1], a[2]),
        libc::SYS_readlinkat => read_link(task, a[0], a[1], a[2], a[3]),
        libc::SYS_getdents64 => entries(task, a[0], a[1], a[2]),
        libc::SYS_getcwd => {
            let path = terminated(&lock(&task.place).directory.path);
            path.and_then(|path| match path.len() as u64 {
                length if length > a[1] => Err(Errno::ERANGE),
                length => lock(&task.memory).write(a[0], &path).map(|()| length),
            })
        }
        libc::SYS_chdir => change_directory(task, a[0]),
        libc::SYS_fchdir => task.file(a[0]).and_then(|file| enter(task, file)),
        libc::SYS_mkdir => at_parent(task, libc::SYS_mkdirat, HERE, a[0], new_mode(task, a[1])),
        libc::SYS_mkdirat => at_parent(task, number, a[0], a[1], new_mode(task, a[2])),
        libc::SYS_rmdir => at_parent(task, libc::SYS_unlinkat, HERE, a[0], libc::AT_REMOVEDIR as u64),
        libc::SYS_unlink => at_parent(task, libc::SYS_unlinkat, HERE, a[0], 0),
        libc::SYS_unlinkat => at_parent(task, number, a[0], a[1], a[2]),
        libc::SYS_mknod => make_node(task, HERE, a[0], a[1]),
        libc::SYS_mknodat => make_node(task, a[0], a[1], a[2]),
        libc::SYS_rename => rename(task, [HERE, a[0], HERE, a[1]], 0),
        libc::SYS_renameat => rename(task, [a[0], a[1], a[2], a[3]], 0),
        libc::SYS_renameat2 => rename(task, [a[0], a[1], a[2], a[3]], a[4]),
        libc::SYS_link => link(task, [HERE, a[0], HERE, a[1]], 0),
        libc::SYS_linkat => link(task, [a[0], a[1], a[2], a[3]], a[4]),
        libc::SYS_symlink => symlink(task, a[0], HERE, a[1]),
        libc::SYS_symlinkat => symlink(task, a[0], a[1], a[2]),
        libc::SYS_chmod => change_mode(task, HERE, a[0], a[1], 0),
        libc::SYS_fchmodat => change_mode(task, a[0], a[1], a[2], 0),
        libc::SYS_fchmodat2 => change_mode(task, a[0], a[1], a[2], a[3]),
        libc::SYS_chown => change_owner(task, [HERE, a[0], a[1], a[2], 0]),
        libc::SYS_lchown => change_owner(task, [HERE, a[0], a[1], a[2], NO_FOLLOW]),
        libc::SYS_fchownat => change_owner(task, [a[0], a[1], a[2], a[3], a[4]]),
        libc::SYS_fchown => {
            task.file(a[0]).and_then(|file| call(task, number, [file.as_fd().into(), a[1].into(), a[2].into()]))
        }
        libc::SYS_utimensat => change_times(task, a),
        libc::SYS_utime => old_times(task, HERE, a[0], a[1], 8, 0),
        libc::SYS_utimes => old_times(task, HERE, a[0], a[1], 16, 1000),
        libc::SYS_futimesat => old_times(task, a[0], a[1], a[2], 16, 1000),
        libc::SYS_truncate => open_file(task, HERE, a[0], OFlag::O_WRONLY, 0)
            .and_then(|file| host::call(libc::SYS_ftruncate, [file.as_raw_fd().into(), a[1].into()])),
        libc::SYS_umask => {
            let mut place = lock(&task.place);
            Ok(u64::from(std::mem::replace(&mut place.umask, a[0] as u32 & 0o777)))
        }
        // No extended attributes: what copies files goes on without.
        libc::SYS_getxattr => target(task, HERE, a[0], 0).and(Err(Errno::ENODATA)),
        libc::SYS_lgetxattr => target(task, HERE, a[0], NO_FOLLOW).and(Err(Errno::ENODATA)),
        libc::SYS_fgetxattr => task.file(a[0]).and(Err(Errno::ENODATA)),
        libc::SYS_listxattr => target(task, HERE, a[0], 0).map(|_| 0),
        libc::SYS_llistxattr => target(task, HERE, a[0], NO_FOLLOW).map(|_| 0),
        libc::SYS_flistxattr => task.file(a[0]).map(|_| 0),
        libc::SYS_setxattr | libc::SYS_removexattr => target(task, HERE, a[0], 0).and(Err(Errno::EOPNOTSUPP)),
        libc::SYS_lsetxattr | libc::SYS_lremovexattr => target(task, HERE, a[0], NO_FOLLOW).and(Err(Errno::EOPNOTSUPP)),
        libc::SYS_fsetxattr | libc::SYS_fremovexattr => task.file(a[0]).and(Err(Errno::EOPNOTSUPP)),
        _ => return None,
    })
}

/// The directory that a path is relative to.
pub fn base(task: &Task, descriptor: u64) -> Result<Arc<OpenFile>> {
    if descriptor as i32 == libc::AT_FDCWD {
        return Ok(lock(&task.place).directory.clone());
    }
    task.file(descriptor)
}

/// A call of the host on files, with the rights of the process.
pub fn call<const N: usize>(task: &Task, number: i64, arguments: [Arg; N]) -> Result {
    task.kernel.root.authority.call(&*task.credentials()?, number, arguments)
}

fn path(task: &Task, address: u64) -> Result<Vec<u8>> {
    lock(&task.memory).path(address)
}

fn new_mode(task: &Task, mode: u64) -> u64 {
    mode & 0o7777 & !u64::from(lock(&task.place).umask)
}

/// Opens the file that a path of the guest names.
pub fn open_file(task: &Task, directory: u64, address: u64, flags: OFlag, mode: u64) -> Result<Arc<OpenFile>> {
    let path = path(task, address)?;
    open_path(task, directory, &path, flags, mode)
}

/// Opens the file at a path.
pub fn open_path(task: &Task, directory: u64, path: &[u8], flags: OFlag, mode: u64) -> Result<Arc<OpenFile>> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mode = Mode::from_bits_truncate(new_mode(task, mode) as u32);
    let base = if path.starts_with(b"/") { lock(&task.place).directory.clone() } else { base(task, directory)? };
    let full = normal(&join(&base.path, path));
    let mut found = proc::find(task, &full);
    if let Some(Ok(Entry::Link(to))) = &found
        && !flags.contains(OFlag::O_NOFOLLOW)
    {
        let to = join(b"/proc", to);
        found = proc::find(task, &to);
        if found.is_none() {
            return task.kernel.root.open(&*task.credentials()?, &base, &to, flags, mode).map(Arc::new);
        }
    }
    match found {
        Some(entry) => proc::open(entry?, full, flags),
        None => match task.kernel.root.open(&*task.credentials()?, &base, path, flags, mode) {
            Err(Errno::ENOENT) => device(task, path, flags),
            done => done.map(Arc::new),
        },
    }
}

/// One of the files of `/dev` that programs count on.
fn device(task: &Task, path: &[u8], flags: OFlag) -> Result<Arc<OpenFile>> {
    let (_, fd) = task.kernel.devices.iter().find(|(name, _)| name == path).ok_or(Errno::ENOENT)?;
    if flags.contains(OFlag::O_DIRECTORY) {
        return Err(Errno::ENOTDIR);
    }
    let fd = fd.try_clone().map_err(|_| Errno::ENFILE)?;
    Ok(OpenFile::new(fd, path))
}

fn open(task: &Task, directory: u64, address: u64, flags: u64, mode: u64) -> Result {
    let flags = OFlag::from_bits_truncate(flags as i32);
    let file = open_file(task, directory, address, flags, mode)?;
    lock(&task.descriptors).add(file, flags.contains(OFlag::O_CLOEXEC), 0)
}

/// The file a path names, for its attributes only.
fn target(task: &Task, directory: u64, address: u64, flags: u64) -> Result<Arc<OpenFile>> {
    let path = path(task, address)?;
    if path.is_empty() && flags & EMPTY_PATH != 0 {
        return base(task, directory);
    }
    let no_follow = if flags & NO_FOLLOW == 0 { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    open_path(task, directory, &path, OFlag::O_PATH | no_follow, 0)
}

/// Has a call fill a structure of `N` bytes and passes it to the guest.
fn fill<const N: usize>(task: &Task, address: u64, call: impl FnOnce(Arg) -> Result) -> Result {
    let mut bytes = [0; N];
    let done = call(Arg::from(&mut bytes))?;
    lock(&task.memory).write(address, &bytes)?;
    Ok(done)
}

fn stat(task: &Task, directory: u64, address: u64, to: u64, flags: u64) -> Result {
    let file = target(task, directory, address, flags)?;
    stat_file(task, &file, to)
}

fn stat_file(task: &Task, file: &OpenFile, to: u64) -> Result {
    let mut bytes = [0; STAT];
    let arguments = [file.as_raw_fd().into(), Arg::In(b"\0"), Arg::from(&mut bytes), EMPTY_PATH.into()];
    host::call(libc::SYS_newfstatat, arguments)?;
    if let Some(mode) = file.kind.mode() {
        bytes[MODE..MODE + 4].copy_from_slice(&mode.to_le_bytes());
    }
    lock(&task.memory).write(to, &bytes).map(|()| 0)
}

fn access(task: &Task, directory: u64, address: u64, mode: u64, flags: u64) -> Result {
    let effective = flags & libc::AT_EACCESS as u64 != 0;
    let who = task.credentials()?;
    let who = if effective { who } else { Arc::new(who.as_real()) };
    let fd = target(task, directory, address, flags)?;
    let flags = flags & !NO_FOLLOW | EMPTY_PATH | libc::AT_EACCESS as u64;
    let arguments = [fd.as_fd().into(), Arg::In(b"\0"), mode.into(), flags.into()];
    task.kernel.root.authority.call(&who, libc::SYS_faccessat2, arguments)
}

fn read_link(task: &Task, directory: u64, address: u64, to: u64, length: u64) -> Result {
    let name = path(task, address)?;
    let base = base(task, directory).unwrap_or_else(|_| lock(&task.place).directory.clone());
    let link = if let Some(entry) = proc::find(task, &normal(&join(&base.path, &name))) {
        match entry? {
            Entry::Link(link) => link,
            Entry::Open(file) => file.path.clone(),
            _ => return Err(Errno::EINVAL),
        }
    } else {
        let fd = target(task, directory, address, NO_FOLLOW | EMPTY_PATH)?;
        let mut link = vec![0; 4096];
        let size = link.len() as u64;
        let arguments = [fd.as_raw_fd().into(), Arg::In(b"\0"), Arg::Out(&mut link), size.into()];
        // Of an open file that is no link the host says that there is no such path.
        let length = host::call(libc::SYS_readlinkat, arguments).map_err(|error| match error {
            Errno::ENOENT => Errno::EINVAL,
            other => other,
        })?;
        link.truncate(length as usize);
        link
    };
    let length = link.len().min(length as usize);
    lock(&task.memory).write(to, &link[..length])?;
    Ok(length as u64)
}

fn entries(task: &Task, descriptor: u64, to: u64, length: u64) -> Result {
    let file = task.file(descriptor)?;
    let mut bytes = vec![0; length.min(MOST_ENTRIES) as usize];
    let length = bytes.len() as u64;
    if file.kind == Kind::Listing {
        let at = host::call(libc::SYS_lseek, [file.as_raw_fd().into(), 0.into(), libc::SEEK_CUR.into()])?;
        let read = nix::sys::uio::pread(&file.fd, &mut bytes, at as i64)?;
        let whole = proc::whole_records(&bytes[..read]) as u64;
        host::call(libc::SYS_lseek, [file.as_raw_fd().into(), (at + whole).into(), libc::SEEK_SET.into()])?;
        lock(&task.memory).write(to, &bytes[..whole as usize])?;
        return Ok(whole);
    }
    let read = host::call(libc::SYS_getdents64, [file.as_raw_fd().into(), Arg::Out(&mut bytes), length.into()])?;
    lock(&task.memory).write(to, &bytes[..read as usize])?;
    Ok(read)
}

fn change_directory(task: &Task, address: u64) -> Result {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut file = open_file(task, HERE, address, flags, 0)?;
    if file.kind == Kind::Listing && file.path == PROC {
        // Paths from there on are looked at as a whole, and so are ours again.
        let here = lock(&task.place).directory.clone();
        file = Arc::new(task.kernel.root.open(&*task.credentials()?, &here, PROC, flags, Mode::empty())?);
    }
    enter(task, file)
}

fn enter(task: &Task, directory: Arc<OpenFile>) -> Result {
    // Searching it must be allowed; on the descriptor itself, since it has no path here.
    let effective = libc::AT_EACCESS.into();
    call(task, libc::SYS_faccessat2, [directory.as_fd().into(), Arg::In(b".\0"), libc::X_OK.into(), effective])?;
    lock(&task.place).directory = directory;
    Ok(0)
}

fn parent(task: &Task, directory: u64, address: u64) -> Result<(OwnedFd, Vec<u8>)> {
    let path = path(task, address)?;
    parent_of(task, directory, &path)
}

/// The directory that holds the last part of a path, and that part with its zero.
pub fn parent_of(task: &Task, directory: u64, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
    let base = if path.starts_with(b"/") { lock(&task.place).directory.clone() } else { base(task, directory)? };
    let (directory, last) = task.kernel.root.parent(&*task.credentials()?, &base, path)?;
    Ok((directory, terminated(&last)?))
}

/// A call of the kind `call(directory, name, number)`.
fn at_parent(task: &Task, number: i64, directory: u64, address: u64, last: u64) -> Result {
    let (directory, name) = parent(task, directory, address)?;
    call(task, number, [directory.as_fd().into(), Arg::In(&name), last.into()])
}

fn make_node(task: &Task, directory: u64, address: u64, mode: u64) -> Result {
    // Devices would be the host's.
    let kind = mode as u32 & libc::S_IFMT;
    if !matches!(kind, 0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) {
        return Err(Errno::EPERM);
    }
    let (directory, name) = parent(task, directory, address)?;
    let mode = u64::from(kind) | new_mode(task, mode);
    call(task, libc::SYS_mknodat, [directory.as_fd().into(), Arg::In(&name), mode.into(), 0.into()])
}

fn rename(task: &Task, [from_directory, from, to_directory, to]: [u64; 4], flags: u64) -> Result {
    let (from_directory, from) = parent(task, from_directory, from)?;
    let (to_directory, to) = parent(task, to_directory, to)?;
    let (from_fd, to_fd) = (from_directory.as_fd(), to_directory.as_fd());
    call(task, libc::SYS_renameat2, [from_fd.into(), Arg::In(&from), to_fd.into(), Arg::In(&to), flags.into()])
}

fn link(task: &Task, [from_directory, from, to_directory, to]: [u64; 4], flags: u64) -> Result {
    let (to_directory, to) = parent(task, to_directory, to)?;
    let to_fd = to_directory.as_fd();
    if flags & (EMPTY_PATH | libc::AT_SYMLINK_FOLLOW as u64) == 0 {
        let (directory, from) = parent(task, from_directory, from)?;
        let arguments = [directory.as_fd().into(), Arg::In(&from), to_fd.into(), Arg::In(&to), 0.into()];
        return call(task, libc::SYS_linkat, arguments);
    }
    // The host follows links only after they were resolved below the root.
    let from = target(task, from_directory, from, flags & EMPTY_PATH)?;
    let arguments = [from.as_fd().into(), Arg::In(b"\0"), to_fd.into(), Arg::In(&to), EMPTY_PATH.into()];
    call(task, libc::SYS_linkat, arguments)
}

fn symlink(task: &Task, text: u64, directory: u64, address: u64) -> Result {
    let text = terminated(&path(task, text)?)?;
    let (directory, name) = parent(task, directory, address)?;
    call(task, libc::SYS_symlinkat, [Arg::In(&text), directory.as_fd().into(), Arg::In(&name)])
}

fn change_mode(task: &Task, directory: u64, address: u64, mode: u64, flags: u64) -> Result {
    let fd = target(task, directory, address, flags)?;
    let arguments = [fd.as_fd().into(), Arg::In(b"\0"), (mode & 0o7777).into(), EMPTY_PATH.into()];
    call(task, libc::SYS_fchmodat2, arguments)
}

fn change_owner(task: &Task, [directory, address, user, group, flags]: [u64; 5]) -> Result {
    let fd = target(task, directory, address, flags)?;
    let arguments = [fd.as_fd().into(), Arg::In(b"\0"), user.into(), group.into(), EMPTY_PATH.into()];
    call(task, libc::SYS_fchownat, arguments)
}

fn change_times(task: &Task, [directory, address, times, flags, ..]: Arguments) -> Result {
    let file = if address == 0 { task.file(directory)? } else { target(task, directory, address, flags)? };
    let fd = file.as_fd();
    if times == 0 {
        return call(task, libc::SYS_utimensat, [fd.into(), Arg::In(b"\0"), 0.into(), EMPTY_PATH.into()]);
    }
    let times: [u8; 32] = lock(&task.memory).array(times)?;
    call(task, libc::SYS_utimensat, [fd.into(), Arg::In(b"\0"), Arg::In(&times), EMPTY_PATH.into()])
}

/// The calls before `utimensat`: two times of `size` bytes each, whose fractions are `unit` nanoseconds, if they have any.
fn old_times(task: &Task, directory: u64, address: u64, times: u64, size: u64, unit: u64) -> Result {
    let file = target(task, directory, address, 0)?;
    let given = match times {
        0 => None,
        at => Some(lock(&task.memory).bytes(at, 2 * size)?),
    };
    let whole = given.map(|bytes| {
        let times = bytes.chunks_exact(size as usize);
        words(&times.flat_map(|time| [word(time, 0), word(time, 8).wrapping_mul(unit)]).collect::<Vec<_>>())
    });
    let times = whole.as_ref().map_or(Arg::Word(0), |times| Arg::In(times));
    call(task, libc::SYS_utimensat, [file.as_fd().into(), Arg::In(b"\0"), times, EMPTY_PATH.into()])
}
