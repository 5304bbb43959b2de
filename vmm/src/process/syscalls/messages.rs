//! `sendmsg` and `recvmsg`: messages with control data, which may carry descriptors to another process.

use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::host::{self, Arg};
use super::{Arguments, files, sockets, unix};
use crate::process::Result;
use crate::process::files::OpenFile;
use crate::process::plain::{half, word, words};
use crate::process::task::Task;
use crate::process::vm::lock;

/// Bytes of `struct msghdr` and `struct cmsghdr`.
const MESSAGE: usize = 56;
const CONTROL: usize = 16;
/// A descriptor of the process that has sent, of `<linux/socket.h>`.
const SCM_PIDFD: i32 = 4;
/// Most bytes of control data.
const MOST_CONTROL: u64 = 16 << 10;
/// Most bytes of a message.
const MOST_BYTES: u64 = 1 << 20;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_sendmsg => send(task, a[0], a[1], a[2]),
        libc::SYS_recvmsg => receive(task, a[0], a[1], a[2]),
        libc::SYS_sendmmsg => many(task, a, send),
        libc::SYS_recvmmsg => many(task, [a[0], a[1], a[2], a[3] & !u64::from(WAIT_FOR_ONE), 0, 0], receive),
        _ => return None,
    })
}

const WAIT_FOR_ONE: u32 = libc::MSG_WAITFORONE as u32;

/// Messages one after the other, up to the first that fails; the host's timeout is for none of them.
fn many(task: &Task, a: Arguments, one: fn(&Task, u64, u64, u64) -> Result) -> Result {
    for at in 0..a[2].min(1024) {
        let header = a[1].wrapping_add(at * (MESSAGE as u64 + 8));
        match one(task, a[0], header, a[3]) {
            Ok(length) => lock(&task.memory).write(header + MESSAGE as u64, &(length as u32).to_le_bytes())?,
            Err(error) if at == 0 => return Err(error),
            Err(_) => return Ok(at),
        }
    }
    Ok(a[2].min(1024))
}

/// A message of the guest: name and its length, parts and their count, control data and its length.
struct Header([u64; 6]);

impl Header {
    fn read(task: &Task, at: u64) -> Result<Self> {
        let bytes: [u8; MESSAGE] = lock(&task.memory).array(at)?;
        let word = |at: usize| word(&bytes, at * 8);
        Ok(Self([word(0), word(1) & 0xffff_ffff, word(2), word(3), word(4), word(5)]))
    }
}

/// A message of the host, over buffers of the VMM that have to outlive the call.
fn message(name: (*const u8, usize), part: &[u64; 2], control: (*const u8, usize)) -> Vec<u8> {
    let (name, length) = (name.0 as u64, name.1 as u64);
    words(&[name, length, part.as_ptr() as u64, 1, control.0 as u64, control.1 as u64, 0])
}

/// A message of control data: its level and kind, and where its content stands.
type Control = (i32, i32, Range<usize>);

/// Each message of control data, up to the first that is none.
fn controls(control: &[u8]) -> impl Iterator<Item = Result<Control>> {
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        let header = control.get(at..)?.first_chunk::<CONTROL>()?;
        let end = usize::try_from(word(header, 0)).ok().filter(|&length| length >= CONTROL);
        let end = end.and_then(|length| at.checked_add(length)).filter(|&end| end <= control.len());
        let Some(end) = end else {
            at = control.len();
            return Some(Err(Errno::EINVAL));
        };
        let content = at + CONTROL..end;
        at = end.next_multiple_of(8);
        Some(Ok((half(header, 8).cast_signed(), half(header, 12).cast_signed(), content)))
    })
}

/// Puts the host's descriptors into control data of the guest, and gives the files, which have to stay open until it was sent.
fn lend(task: &Task, control: &mut [u8]) -> Result<Vec<Arc<OpenFile>>> {
    let mut lent = Vec::new();
    for (level, kind, content) in controls(control).collect::<Result<Vec<_>>>()? {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for place in control[content].chunks_exact_mut(4) {
                    let file = task.file(half(place, 0).into())?;
                    place.copy_from_slice(&file.as_raw_fd().to_le_bytes());
                    lent.push(file);
                }
            }
            // The ids would be the host's.
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => return Err(Errno::EPERM),
            _ => {}
        }
    }
    Ok(lent)
}

/// Control data of the host as the guest is to see it, and whether that is all it is to see: the descriptors are its own, as
/// many as it has room for.
fn take(task: &Task, control: &[u8], close: bool) -> (Vec<u8>, bool) {
    let (mut seen, mut whole) = (Vec::new(), true);
    for (level, kind, content) in controls(control).map_while(Result::ok) {
        let content = &control[content];
        let owned = || {
            let numbers = content.chunks_exact(4).map(|number| half(number, 0).cast_signed());
            // SAFETY: the host has just given these descriptors to nobody else.
            numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect::<Vec<_>>()
        };
        let content = match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let mut numbers = Vec::new();
                for fd in owned() {
                    let Ok(number) = lock(&task.descriptors).add(OpenFile::new(fd, "socket:"), close, 0) else {
                        whole = false;
                        break;
                    };
                    numbers.extend((number as i32).to_le_bytes());
                }
                if numbers.is_empty() {
                    continue;
                }
                numbers
            }
            // Processes of the host are none of the guest's: what stands for one is closed, and ids are left out.
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                drop(owned());
                continue;
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => continue,
            _ => content.to_vec(),
        };
        seen.extend(((CONTROL + content.len()) as u64).to_le_bytes());
        seen.extend([level, kind].iter().flat_map(|half| half.to_le_bytes()));
        seen.extend(content);
        seen.resize(seen.len().next_multiple_of(8), 0);
    }
    // The last one may have had no room for what fills it up.
    seen.truncate(control.len());
    (seen, whole)
}

fn send(task: &Task, descriptor: u64, at: u64, flags: u64) -> Result {
    let Header([name, name_length, parts, count, control, control_length]) = Header::read(task, at)?;
    let file = task.file(descriptor)?;
    let bytes = files::gather(task, &files::parts(task, parts, count)?)?;
    let (to, _held) = match name {
        0 => (Vec::new(), None),
        name => unix::reach(task, sockets::address(task, name, name_length)?)?,
    };
    let mut control = match control {
        0 => Vec::new(),
        control => lock(&task.memory).bytes(control, control_length.min(MOST_CONTROL))?,
    };
    let _lent = lend(task, &mut control)?;
    let part = [bytes.as_ptr() as u64, bytes.len() as u64];
    let own = message((to.as_ptr(), to.len()), &part, (control.as_ptr(), control.len()));
    // The signal is the guest's, not the VMM's.
    let quiet = flags | libc::MSG_NOSIGNAL as u64;
    let done = host::blocking(task.flag(), libc::SYS_sendmsg, [file.as_raw_fd().into(), Arg::In(&own), quiet.into()]);
    if done == Err(Errno::EPIPE) && flags & libc::MSG_NOSIGNAL as u64 == 0 {
        super::signals::send_self(task, libc::SIGPIPE);
    }
    done
}

fn receive(task: &Task, descriptor: u64, at: u64, flags: u64) -> Result {
    let Header([name, name_length, parts, count, control, control_length]) = Header::read(task, at)?;
    let file = task.file(descriptor)?;
    let parts = files::parts(task, parts, count)?;
    let room = parts.iter().map(|part| part.1).fold(0, u64::saturating_add).min(MOST_BYTES);
    let mut bytes = vec![0u8; room as usize];
    let mut from = vec![0u8; if name == 0 { 0 } else { name_length.min(128) as usize }];
    let mut received = vec![0u8; if control == 0 { 0 } else { control_length.min(MOST_CONTROL) as usize }];
    let part = [bytes.as_mut_ptr() as u64, room];
    let mut own = message((from.as_mut_ptr(), from.len()), &part, (received.as_mut_ptr(), received.len()));
    let close = flags & libc::MSG_CMSG_CLOEXEC as u64 != 0;
    let own_flags = flags | libc::MSG_CMSG_CLOEXEC as u64;
    let arguments = [file.as_raw_fd().into(), Arg::Out(&mut own), own_flags.into()];
    let read = host::blocking(task.flag(), libc::SYS_recvmsg, arguments)?;
    let (used_name, used_control) = (half(&own, 8), word(&own, 40));
    let mut told = half(&own, 48) & !(libc::MSG_CMSG_CLOEXEC as u32) | (flags & libc::MSG_CMSG_CLOEXEC as u64) as u32;
    received.truncate(used_control as usize);
    let (received, whole) = take(task, &received, close);
    if !whole {
        told |= libc::MSG_CTRUNC as u32;
    }
    files::scatter(task, &parts, &bytes[..bytes.len().min(read as usize)])?;
    let mut memory = lock(&task.memory);
    if name != 0 {
        memory.write(name, &from[..from.len().min(used_name as usize)])?;
    }
    memory.write(at + 8, &used_name.to_le_bytes())?;
    if control != 0 {
        memory.write(control, &received)?;
    }
    memory.write(at + 40, &(received.len() as u64).to_le_bytes())?;
    memory.write(at + 48, &told.to_le_bytes())?;
    Ok(read)
}
