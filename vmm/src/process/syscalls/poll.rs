//! Waiting for descriptors: poll, select, epoll. The host's own calls, with its descriptors in place of the guest's.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::host::{self, Arg};
use super::signals::with_mask;
use super::time::{Deadline, bytes, timespec};
use super::{Arguments, files};
use crate::process::Result;
use crate::process::plain::{half, word};
use crate::process::task::Task;
use crate::process::vm::lock;

/// Most descriptors of one `select`, as in `fd_set`.
const MOST_SELECTED: u64 = 1024;
/// Most events of one `epoll_wait`.
const MOST_EVENTS: u64 = 1024;
const EPOLL_EVENT: u64 = 12;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_poll => poll(task, a[0], a[1], milliseconds(a[2])),
        libc::SYS_ppoll => {
            timeout(task, a[2]).and_then(|deadline| with_mask(task, a[3], |task| poll(task, a[0], a[1], deadline)))
        }
        libc::SYS_select => match a[4] {
            0 => select(task, a, None),
            at => {
                // The memory is free again before it is waited.
                let time = lock(&task.memory).array::<16>(at);
                time.and_then(|time| {
                    let [seconds, microseconds] = [0, 8].map(|at| word(&time, at).cast_signed());
                    if seconds < 0 || microseconds < 0 {
                        return Err(Errno::EINVAL);
                    }
                    let seconds = seconds.saturating_add(microseconds / 1_000_000);
                    let time = libc::timespec { tv_sec: seconds, tv_nsec: microseconds % 1_000_000 * 1000 };
                    select(task, a, Some(Deadline::new(time, false, false)))
                })
            }
        },
        libc::SYS_pselect6 => timeout(task, a[4]).and_then(|deadline| {
            let mask = if a[5] == 0 { 0 } else { lock(&task.memory).word(a[5])? };
            with_mask(task, mask, |task| select(task, a, deadline))
        }),
        libc::SYS_epoll_create => epoll_create(task, 0),
        libc::SYS_epoll_create1 => epoll_create(task, a[0]),
        libc::SYS_epoll_ctl => epoll_control(task, a),
        libc::SYS_epoll_wait => epoll_wait(task, a),
        libc::SYS_epoll_pwait => with_mask(task, a[4], |task| epoll_wait(task, a)),
        libc::SYS_epoll_pwait2 => timeout(task, a[3]).and_then(|deadline| {
            let left = deadline.map(|deadline| deadline.left());
            // Rounded up: it is not to end before its time.
            let left = left.map_or(-1, |left| {
                left.tv_sec.saturating_mul(1000).saturating_add((left.tv_nsec + 999_999) / 1_000_000)
            });
            let left = left.min(i32::MAX.into()).cast_unsigned();
            with_mask(task, a[4], |task| epoll_wait(task, [a[0], a[1], a[2], left, 0, 0]))
        }),
        _ => return None,
    })
}

fn milliseconds(timeout: u64) -> Option<Deadline> {
    let timeout = i64::from(timeout as i32);
    let time = libc::timespec { tv_sec: timeout / 1000, tv_nsec: timeout % 1000 * 1_000_000 };
    (timeout >= 0).then(|| Deadline::new(time, false, false))
}

fn timeout(task: &Task, address: u64) -> Result<Option<Deadline>> {
    if address == 0 {
        return Ok(None);
    }
    timespec(task, address).map(|time| Some(Deadline::new(time, false, false)))
}

/// The host's ppoll on `struct pollfd`s that hold the host's descriptors.
fn host_poll(task: &Task, descriptors: &mut [u8], deadline: Option<Deadline>) -> Result {
    let count = descriptors.len() as u64 / 8;
    let mut left = deadline.map(|deadline| bytes(deadline.left()));
    let timeout = left.as_mut().map_or(Arg::Word(0), Arg::from);
    host::blocking(task.flag(), libc::SYS_ppoll, [Arg::Out(descriptors), count.into(), timeout, 0.into(), 8.into()])
}

fn poll(task: &Task, address: u64, count: u64, deadline: Option<Deadline>) -> Result {
    if count > lock(&task.descriptors).limit {
        return Err(Errno::EINVAL);
    }
    let mut guest = lock(&task.memory).bytes(address, count * 8)?;
    let mut own = guest.clone();
    // The open files stay open while the host waits for them.
    let mut held = Vec::new();
    let mut invalid = 0;
    for (entry, guest) in own.chunks_exact_mut(8).zip(guest.chunks_exact_mut(8)) {
        guest[6..].fill(0);
        let number = half(guest, 0).cast_signed();
        let fd = match task.file(number as u64) {
            _ if number < 0 => -1,
            Ok(file) => {
                held.push(file.clone());
                file.as_raw_fd()
            }
            Err(_) => {
                guest[6..].copy_from_slice(&libc::POLLNVAL.to_le_bytes());
                invalid += 1;
                -1
            }
        };
        entry[..4].copy_from_slice(&fd.to_le_bytes());
    }
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let deadline = if invalid > 0 { Some(Deadline::new(now, false, false)) } else { deadline };
    let ready = host_poll(task, &mut own, deadline)?;
    for (entry, guest) in own.chunks_exact(8).zip(guest.chunks_exact_mut(8)) {
        if guest[6..] == [0, 0] {
            guest[6..].copy_from_slice(&entry[6..]);
        }
    }
    lock(&task.memory).write(address, &guest)?;
    Ok(ready + invalid)
}

/// What a set of select stands for in poll: what is asked, what of the answer counts, and its place.
const SETS: [(i16, i16); 3] = [
    (
        libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND,
        libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | libc::POLLERR,
    ),
    (libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND, libc::POLLOUT | libc::POLLWRNORM | libc::POLLERR),
    (libc::POLLPRI, libc::POLLPRI),
];

fn select(task: &Task, a: Arguments, deadline: Option<Deadline>) -> Result {
    let count = a[0].min(MOST_SELECTED);
    let length = count.div_ceil(64) * 8;
    let mut sets = Vec::new();
    for &address in &a[1..4] {
        sets.push(if address == 0 { vec![0; length as usize] } else { lock(&task.memory).bytes(address, length)? });
    }
    let has = |set: &[u8], number: u64| set[number as usize / 8] >> (number % 8) & 1 != 0;
    let (mut entries, mut held) = (Vec::new(), Vec::new());
    for number in 0..count {
        let asked = SETS.iter().zip(&sets).filter(|(_, set)| has(set, number)).fold(0, |bits, (kind, _)| bits | kind.0);
        if asked != 0 {
            let file = task.file(number)?;
            entries.extend(file.as_raw_fd().to_le_bytes());
            entries.extend(asked.to_le_bytes());
            entries.extend([0, 0]);
            held.push((number, file));
        }
    }
    host_poll(task, &mut entries, deadline)?;
    let mut ready = 0;
    let mut answers = vec![vec![0u8; length as usize]; 3];
    for (entry, (number, _)) in entries.chunks_exact(8).zip(&held) {
        let found = i16::from_le_bytes([entry[6], entry[7]]);
        for ((set, answer), (_, counts)) in sets.iter().zip(&mut answers).zip(SETS) {
            if has(set, *number) && found & counts != 0 {
                answer[*number as usize / 8] |= 1 << (number % 8);
                ready += 1;
            }
        }
    }
    for (&address, answer) in a[1..4].iter().zip(&answers).filter(|(address, _)| **address != 0) {
        lock(&task.memory).write(address, answer)?;
    }
    Ok(ready)
}

fn epoll_create(task: &Task, flags: u64) -> Result {
    let fd = host::call(libc::SYS_epoll_create1, [(flags | libc::EPOLL_CLOEXEC as u64).into()])?;
    files::adopt(task, fd, "anon_inode:[eventpoll]", flags & libc::EPOLL_CLOEXEC as u64 != 0)
}

fn epoll_control(task: &Task, [epoll, operation, descriptor, event, ..]: Arguments) -> Result {
    let (epoll, file) = (task.file(epoll)?, task.file(descriptor)?);
    let mut bytes = [0; EPOLL_EVENT as usize];
    if operation as i32 != libc::EPOLL_CTL_DEL {
        bytes = lock(&task.memory).array(event)?;
    }
    let fd = file.as_raw_fd();
    host::call(libc::SYS_epoll_ctl, [epoll.as_raw_fd().into(), operation.into(), fd.into(), Arg::In(&bytes)])
}

fn epoll_wait(task: &Task, [epoll, events, count, timeout, ..]: Arguments) -> Result {
    let epoll = task.file(epoll)?;
    if count == 0 || count as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let count = count.min(MOST_EVENTS);
    let mut found = vec![0; (count * EPOLL_EVENT) as usize];
    let arguments = [epoll.as_raw_fd().into(), Arg::Out(&mut found), count.into(), (timeout as i32).into()];
    let ready = host::blocking(task.flag(), libc::SYS_epoll_wait, arguments)?;
    lock(&task.memory).write(events, &found[..(ready * EPOLL_EVENT) as usize])?;
    Ok(ready)
}
