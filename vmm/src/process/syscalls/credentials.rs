//! Ids and capabilities (credentials(7), capabilities(7)).

use std::sync::Arc;

use nix::errno::Errno;
use rustix::thread::CapabilitySet;

use super::Arguments;
use crate::process::Result;
use crate::process::files::credentials::MOST_GROUPS;
use crate::process::files::{Credentials, Ids};
use crate::process::plain::half;
use crate::process::task::Task;
use crate::process::vm::lock;

/// `_LINUX_CAPABILITY_VERSION_3`: two sets of 32 bits each.
const VERSION: u32 = 0x2008_0522;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let task = &*task;
    let own = || task.credentials();
    let id = |at: usize| Some(a[at] as u32).filter(|&id| id != u32::MAX);
    Some(match number {
        libc::SYS_getuid => own().map(|own| own.user.real.into()),
        libc::SYS_geteuid => own().map(|own| own.user.effective.into()),
        libc::SYS_getgid => own().map(|own| own.group.real.into()),
        libc::SYS_getegid => own().map(|own| own.group.effective.into()),
        libc::SYS_getresuid => own().and_then(|own| write_ids(task, a, own.user)),
        libc::SYS_getresgid => own().and_then(|own| write_ids(task, a, own.group)),
        libc::SYS_setuid => set_user(task, |ids, may| ids.set(a[0] as u32, may)),
        libc::SYS_setreuid => set_user(task, |ids, may| ids.set_two(id(0), id(1), may)),
        libc::SYS_setresuid => set_user(task, |ids, may| ids.set_three([id(0), id(1), id(2)], may)),
        libc::SYS_setgid => set_group(task, |ids, may| ids.set(a[0] as u32, may)),
        libc::SYS_setregid => set_group(task, |ids, may| ids.set_two(id(0), id(1), may)),
        libc::SYS_setresgid => set_group(task, |ids, may| ids.set_three([id(0), id(1), id(2)], may)),
        // Files are always looked at as the effective user: these give the id before, and change nothing.
        libc::SYS_setfsuid => own().map(|own| own.user.effective.into()),
        libc::SYS_setfsgid => own().map(|own| own.group.effective.into()),
        libc::SYS_getgroups => own().and_then(|own| groups(task, &own.groups, a[0], a[1])),
        libc::SYS_setgroups => set_groups(task, a[0], a[1]),
        libc::SYS_capget => capabilities(task, a[0], a[1]),
        libc::SYS_capset => set_capabilities(task, a[0], a[1]),
        _ => return None,
    })
}

fn write_ids(task: &Task, to: Arguments, ids: Ids) -> Result {
    let mut memory = lock(&task.memory);
    to.iter().zip(ids.all()).try_for_each(|(&at, id)| memory.write(at, &id.to_le_bytes())).map(|()| 0)
}

fn change(task: &Task, change: impl FnOnce(&Credentials) -> Result<Credentials>) -> Result {
    let mut table = lock(&task.kernel.table);
    let process = table.process(task.pid)?;
    process.credentials = Arc::new(change(&process.credentials)?);
    Ok(0)
}

fn set_user(task: &Task, ids: impl FnOnce(Ids, bool) -> Result<Ids>) -> Result {
    change(task, |own| ids(own.user, own.has(CapabilitySet::SETUID)).map(|user| own.with_users(user)))
}

fn set_group(task: &Task, ids: impl FnOnce(Ids, bool) -> Result<Ids>) -> Result {
    change(task, |own| {
        let group = ids(own.group, own.has(CapabilitySet::SETGID))?;
        Ok(Credentials { group, ..own.clone() })
    })
}

fn groups(task: &Task, groups: &[u32], room: u64, to: u64) -> Result {
    if room as i32 != 0 {
        if (room as i32) < groups.len() as i32 {
            return Err(Errno::EINVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|id| id.to_le_bytes()).collect();
        lock(&task.memory).write(to, &bytes)?;
    }
    Ok(groups.len() as u64)
}

fn set_groups(task: &Task, count: u64, from: u64) -> Result {
    if count > MOST_GROUPS as u64 {
        return Err(Errno::EINVAL);
    }
    let bytes = lock(&task.memory).bytes(from, count * 4)?;
    let groups: Vec<u32> = bytes.chunks_exact(4).map(|id| half(id, 0)).collect();
    change(task, |own| {
        let may = own.has(CapabilitySet::SETGID);
        if may { Ok(Credentials { groups, ..own.clone() }) } else { Err(Errno::EPERM) }
    })
}

/// The version and process of a `cap_user_header_t`.
fn header(task: &Task, at: u64) -> Result<i32> {
    let bytes: [u8; 8] = lock(&task.memory).array(at)?;
    if half(&bytes, 0) != VERSION {
        lock(&task.memory).write(at, &VERSION.to_le_bytes())?;
        return Err(Errno::EINVAL);
    }
    Ok(half(&bytes, 4).cast_signed())
}

fn capabilities(task: &Task, at: u64, to: u64) -> Result {
    let pid = match header(task, at) {
        // Without a place for the answer only the version is asked for.
        Err(Errno::EINVAL) if to == 0 => return Ok(0),
        pid => pid?,
    };
    if to == 0 {
        return Ok(0);
    }
    let pid = if pid == 0 { task.pid } else { pid };
    let who = lock(&task.kernel.table).process(pid)?.credentials.clone();
    let sets = [who.capabilities().bits(), who.permitted.bits(), 0];
    let words = sets.map(|set| set as u32).into_iter().chain(sets.map(|set| (set >> 32) as u32));
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    lock(&task.memory).write(to, &bytes).map(|()| 0)
}

/// Capabilities can be given up: permitted and effective ones as one set.
fn set_capabilities(task: &Task, at: u64, from: u64) -> Result {
    let pid = header(task, at)?;
    if pid != 0 && pid != task.pid {
        return Err(Errno::EPERM);
    }
    let bytes: [u8; 24] = lock(&task.memory).array(from)?;
    let set =
        |at| CapabilitySet::from_bits_retain(u64::from(half(&bytes, at)) | u64::from(half(&bytes, at + 12)) << 32);
    let (effective, permitted) = (set(0), set(4));
    change(task, |own| {
        let less = own.permitted.contains(permitted) && permitted.contains(effective);
        if less { Ok(Credentials { permitted, ..own.clone() }) } else { Err(Errno::EPERM) }
    })
}
