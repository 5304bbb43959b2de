//! Options of sockets. The host takes an option's value from the VMM's memory: those that hold a pointer or a descriptor, that
//! count their length in something else than bytes, or that keep the memory after the call are not a program's to set or to
//! read. So only those are passed on that are known to be plain values.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::Arguments;
use super::host::{self, Arg};
use crate::process::Result;
use crate::process::task::Task;
use crate::process::vm::lock;

/// Most bytes of an option.
const MOST_BYTES: u64 = 4096;

/// The ranges of options of each level that are passed on, by their numbers in the kernel's headers: numbers, times, addresses
/// and names.
#[rustfmt::skip]
const KNOWN: &[(i32, &[(i32, i32)])] = &[
    // Not: filters (26, 50 to 52), transmission out of the memory it was asked from (60), descriptors of processes (76, 77).
    (libc::SOL_SOCKET, &[(1, 21), (25, 25), (27, 27), (29, 49), (53, 53), (55, 57), (59, 59), (61, 75)]),
    // Not: control messages (9), policies (16, 17), lists of sources (41, 48), tables of filters (64 and on, but for the
    // address before translation, 80).
    (libc::SOL_IP, &[(1, 8), (10, 15), (18, 26), (32, 40), (42, 47), (49, 52), (80, 80)]),
    // Not: another kind of address (1), headers and control messages (3 to 6, 54, 55, 57, 59), flow labels (32), and as above.
    (libc::SOL_IPV6, &[
        (2, 2), (7, 8), (11, 11), (16, 31), (33, 33), (36, 36), (42, 47), (49, 53), (56, 56), (58, 58), (60, 62), (66, 67),
        (70, 70), (72, 78), (80, 80),
    ]),
    (libc::SOL_ICMPV6, &[(1, 1)]),
    // Not: keys (14, 17 of fast open's, 33), repair (19 to 22, 29), other protocols above (31), pages in place of bytes (35).
    (libc::SOL_TCP, &[(1, 13), (16, 18), (23, 25), (27, 28), (30, 30), (34, 34), (36, 37)]),
    (libc::SOL_UDP, &[(1, 1), (101, 104)]),
    (libc::IPPROTO_UDPLITE, &[(10, 11)]),
    (libc::SOL_RAW, &[(1, 1)]),
    // Not: rings in memory (6, 7), other namespaces (8).
    (libc::SOL_NETLINK, &[(1, 5), (9, 12)]),
];

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_setsockopt => set(task, a),
        libc::SYS_getsockopt => get(task, a),
        _ => return None,
    })
}

/// Level and name of an option that is passed on.
fn known([_, level, name, ..]: Arguments) -> Result<(i32, i32)> {
    let (level, name) = (level as i32, name as i32);
    let is_known = KNOWN
        .iter()
        .any(|&(known, names)| level == known && names.iter().any(|&(first, last)| (first..=last).contains(&name)));
    if is_known { Ok((level, name)) } else { Err(Errno::ENOPROTOOPT) }
}

fn set(task: &Task, a: Arguments) -> Result {
    let file = task.file(a[0])?;
    let (level, name) = known(a)?;
    let value = lock(&task.memory).bytes(a[3], a[4].min(MOST_BYTES))?;
    let length = value.len() as u64;
    let arguments = [file.as_raw_fd().into(), level.into(), name.into(), Arg::In(&value), length.into()];
    host::call(libc::SYS_setsockopt, arguments)
}

fn get(task: &Task, a: Arguments) -> Result {
    let file = task.file(a[0])?;
    let (level, name) = known(a)?;
    let room = u64::from(lock(&task.memory).half(a[4])?).min(MOST_BYTES);
    let mut value = vec![0; room as usize];
    let mut length = (room as u32).to_le_bytes();
    let out = Arg::Out(&mut value);
    let arguments = [file.as_raw_fd().into(), level.into(), name.into(), out, Arg::from(&mut length)];
    host::call(libc::SYS_getsockopt, arguments)?;
    let used = (u32::from_le_bytes(length) as usize).min(value.len());
    let mut memory = lock(&task.memory);
    memory.write(a[3], &value[..used])?;
    memory.write(a[4], &length)?;
    Ok(0)
}
