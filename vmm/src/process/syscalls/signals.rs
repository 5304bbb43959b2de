//! Signals: actions, masks, sending, waiting for them, also by reading a descriptor.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::Arguments;
use super::host::{self, Arg};
use super::time::{Deadline, timespec};
use crate::process::Result;
use crate::process::files::{Kind, OpenFile};
use crate::process::plain::word;
use crate::process::task::signal::{Action, AlternateStack, Info, Set};
use crate::process::task::table::Status;
use crate::process::task::{Answer, Task};
use crate::process::vm::lock;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_rt_sigaction => action(task, a),
        libc::SYS_rt_sigprocmask => mask(task, a),
        libc::SYS_rt_sigpending => {
            let mut table = lock(&task.kernel.table);
            let pending = table.process(task.pid).map(|process| {
                let own = process.threads.get(&task.tid).into_iter().flat_map(|thread| &thread.pending);
                process.pending.iter().chain(own).fold(0, |set, info| set | Set::one(info.signal).0)
            });
            drop(table);
            pending.and_then(|set| lock(&task.memory).write(a[0], &set.to_le_bytes())).map(|()| 0)
        }
        libc::SYS_rt_sigsuspend => suspend(task, a[0]),
        libc::SYS_pause => wait(task, None),
        libc::SYS_rt_sigtimedwait => timed_wait(task, a),
        libc::SYS_sigaltstack => alternate_stack(task, a[0], a[1]),
        libc::SYS_kill => kill(task, a[0] as i32, a[1]),
        libc::SYS_tkill => kill_thread(task, None, a[0] as i32, a[1]),
        libc::SYS_tgkill => kill_thread(task, Some(a[0] as i32), a[1] as i32, a[2]),
        libc::SYS_rt_sigqueueinfo => queue(task, None, a[0], a[1], a[2]),
        libc::SYS_rt_tgsigqueueinfo => queue(task, Some(a[1] as i32), a[0], a[2], a[3]),
        libc::SYS_signalfd => signal_file(task, a, 0),
        libc::SYS_signalfd4 => signal_file(task, a, a[3]),
        _ => return None,
    })
}

/// Serves `rt_sigreturn`: the registers are those the handler interrupted.
pub fn return_from_handler(task: &mut Task) -> Result<Answer> {
    if task.leave_handler().is_err() {
        task.end_process(Status::Killed(libc::SIGSEGV as u8));
    }
    Ok(Answer::Registers)
}

/// The number of a signal that exists.
pub fn number(signal: u64) -> Result<u8> {
    u8::try_from(signal).ok().filter(|signal| (1..=64).contains(signal)).ok_or(Errno::EINVAL)
}

fn action(task: &Task, [signal, new, old, size, ..]: Arguments) -> Result {
    let signal = number(signal)?;
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let new: Option<[u8; 32]> = if new == 0 { None } else { Some(lock(&task.memory).array(new)?) };
    if new.is_some() && matches!(i32::from(signal), libc::SIGKILL | libc::SIGSTOP) {
        return Err(Errno::EINVAL);
    }
    let mut table = lock(&task.kernel.table);
    let process = table.process(task.pid)?;
    let slot = &mut process.actions[usize::from(signal)];
    let before = *slot;
    if let Some(bytes) = new {
        let word = |at| word(&bytes, at);
        *slot = Action { handler: word(0), flags: word(8), restorer: word(16), mask: Set(word(24)) };
    }
    drop(table);
    if old != 0 {
        let words = [before.handler, before.flags, before.restorer, before.mask.0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        lock(&task.memory).write(old, &bytes)?;
    }
    Ok(0)
}

/// Replaces the mask of this thread and gives the one before.
fn set_mask(task: &Task, change: impl FnOnce(Set) -> Set) -> Result<Set> {
    let mut table = lock(&task.kernel.table);
    let thread = table.process(task.pid)?.threads.get_mut(&task.tid).ok_or(Errno::ESRCH)?;
    let before = thread.blocked;
    thread.blocked = change(before).blockable();
    // What waited may be let through now.
    task.flag().set();
    Ok(before)
}

fn mask(task: &Task, [how, new, old, size, ..]: Arguments) -> Result {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let new = if new == 0 { None } else { Some(lock(&task.memory).word(new)?) };
    let before = set_mask(task, |before| match (new, how as i32) {
        (Some(new), libc::SIG_BLOCK) => Set(before.0 | new),
        (Some(new), libc::SIG_UNBLOCK) => Set(before.0 & !new),
        (Some(new), libc::SIG_SETMASK) => Set(new),
        _ => before,
    })?;
    if new.is_some() && !(libc::SIG_BLOCK..=libc::SIG_SETMASK).contains(&(how as i32)) {
        return Err(Errno::EINVAL);
    }
    if old != 0 {
        lock(&task.memory).write(old, &before.0.to_le_bytes())?;
    }
    Ok(0)
}

/// Waits with another mask: the mask before is restored once a handler has been entered.
pub fn with_mask(task: &mut Task, address: u64, call: impl FnOnce(&mut Task) -> Result) -> Result {
    if address == 0 {
        return call(task);
    }
    let new = Set(lock(&task.memory).word(address)?);
    let before = set_mask(task, |_| new)?;
    let done = if pending(task)? { Err(Errno::EINTR) } else { clear_flag_and(task, call) };
    let mut table = lock(&task.kernel.table);
    let thread = table.process(task.pid)?.threads.get_mut(&task.tid).ok_or(Errno::ESRCH)?;
    if done == Err(Errno::EINTR) {
        thread.restore.get_or_insert(before);
    } else {
        thread.blocked = before;
    }
    task.flag().set();
    done
}

/// Calls with the flag clear, unless something arrived since the mask was set.
fn clear_flag_and(task: &mut Task, call: impl FnOnce(&mut Task) -> Result) -> Result {
    task.handle.flag.take();
    if pending(task)? {
        task.handle.flag.set();
        return Err(Errno::EINTR);
    }
    call(task)
}

/// Whether there is something for this thread to look at.
fn pending(task: &Task) -> Result<bool> {
    let mut table = lock(&task.kernel.table);
    let process = table.process(task.pid)?;
    let Some(thread) = process.threads.get(&task.tid) else { return Ok(true) };
    let ready = |info: &Info| !thread.blocked.has(info.signal);
    let told = process.ending.is_some() || process.sole.is_some() || process.stopped.is_some();
    Ok(told || thread.pending.iter().any(ready) || process.pending.iter().any(ready))
}

fn wait(task: &Task, timeout: Option<&libc::timespec>) -> Result {
    let nothing = crate::process::task::gate::Event::default();
    loop {
        nothing.wait(task.flag(), 0, timeout)?;
    }
}

fn suspend(task: &mut Task, address: u64) -> Result {
    with_mask(task, address, |task| wait(task, None))
}

fn timed_wait(task: &mut Task, [set, info, timeout, ..]: Arguments) -> Result {
    let set = Set(lock(&task.memory).word(set)?);
    let timeout = if timeout == 0 { None } else { Some(timespec(task, timeout)?) };
    let deadline = timeout.map(|timeout| Deadline::new(timeout, false, false));
    let nothing = crate::process::task::gate::Event::default();
    loop {
        task.handle.flag.take();
        let mut table = lock(&task.kernel.table);
        let process = table.process(task.pid)?;
        let taken = process.take(task.tid, |signal| set.has(signal));
        let thread = process.threads.get_mut(&task.tid).ok_or(Errno::ESRCH)?;
        thread.awaited = if taken.is_some() { Set::default() } else { set };
        drop(table);
        if let Some(taken) = taken {
            task.flag().set();
            if info != 0 {
                lock(&task.memory).write(info, &taken.bytes())?;
            }
            return Ok(u64::from(taken.signal));
        }
        if pending(task)? {
            await_nothing(task)?;
            task.flag().set();
            return Err(Errno::EINTR);
        }
        let left = deadline.as_ref().map(Deadline::left);
        // Woken for another reason: whatever it is, it is looked for again.
        if nothing.wait(task.flag(), 0, left.as_ref()) == Err(Errno::ETIMEDOUT) {
            await_nothing(task)?;
            return Err(Errno::EAGAIN);
        }
    }
}

/// A call that waited for signals is over.
fn await_nothing(task: &Task) -> Result<()> {
    let mut table = lock(&task.kernel.table);
    let thread = table.process(task.pid)?.threads.get_mut(&task.tid).ok_or(Errno::ESRCH)?;
    thread.awaited = Set::default();
    Ok(())
}

fn alternate_stack(task: &mut Task, new: u64, old: u64) -> Result {
    let before = task.alternate_stack;
    let mut memory = lock(&task.memory);
    let wanted: Option<[u8; 24]> = if new == 0 { None } else { Some(memory.array(new)?) };
    if old != 0 {
        let flags = if before.size == 0 { libc::SS_DISABLE as u64 } else { 0 };
        let bytes: Vec<u8> = [before.start, flags, before.size].iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(old, &bytes)?;
    }
    drop(memory);
    if let Some(bytes) = wanted {
        let word = |at| word(&bytes, at);
        task.alternate_stack = if word(8) as i32 & libc::SS_DISABLE != 0 {
            AlternateStack::default()
        } else if word(16) < libc::MINSIGSTKSZ as u64 {
            return Err(Errno::ENOMEM);
        } else {
            AlternateStack { start: word(0), size: word(16) }
        };
    }
    Ok(0)
}

/// Sends this thread a signal for what it did.
pub fn send_self(task: &Task, signal: i32) {
    let mut table = lock(&task.kernel.table);
    let _ = table.send_to_thread(task.pid, task.tid, Info::kernel(signal));
}

fn kill(task: &Task, target: i32, signal: u64) -> Result {
    let mut table = lock(&task.kernel.table);
    let own = table.process(task.pid)?;
    let (group, who) = (own.group, own.credentials.clone());
    let targets = match target {
        0 => table.group(group),
        -1 => table.processes.keys().copied().filter(|&pid| pid != task.pid && pid != 1).collect(),
        target if target < 0 => table.group(target.wrapping_neg()),
        target => table.processes.contains_key(&target).then_some(target).into_iter().collect(),
    };
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    let may = |pid: &i32| table.processes.get(pid).is_some_and(|target| who.may_signal(&target.credentials));
    let targets: Vec<i32> = targets.into_iter().filter(may).collect();
    if targets.is_empty() {
        return Err(Errno::EPERM);
    }
    if signal == 0 {
        return Ok(0);
    }
    let info = Info::from_process(number(signal)?, libc::SI_USER, task.pid, who.user.real);
    for target in targets {
        table.send(target, info);
    }
    Ok(0)
}

fn kill_thread(task: &Task, process: Option<i32>, thread: i32, signal: u64) -> Result {
    let mut table = lock(&task.kernel.table);
    let found = table.process_of(thread).ok_or(Errno::ESRCH)?;
    if process.is_some_and(|process| process != found) {
        return Err(Errno::ESRCH);
    }
    let who = table.process(task.pid)?.credentials.clone();
    if !who.may_signal(&table.process(found)?.credentials) {
        return Err(Errno::EPERM);
    }
    if signal == 0 {
        return Ok(0);
    }
    let info = Info::from_process(number(signal)?, libc::SI_TKILL, task.pid, who.user.real);
    table.process(found)?.has_room_for(info.signal)?;
    table.send_to_thread(found, thread, info).map(|()| 0)
}

fn queue(task: &Task, thread: Option<i32>, target: u64, signal: u64, info: u64) -> Result {
    let bytes: [u8; 128] = lock(&task.memory).array(info)?;
    let info = Info::from_bytes(number(signal)?, &bytes);
    let target = target as i32;
    let mut table = lock(&task.kernel.table);
    let who = table.process(task.pid)?.credentials.clone();
    if !who.may_signal(&table.process(target)?.credentials) {
        return Err(Errno::EPERM);
    }
    table.process(target)?.has_room_for(info.signal)?;
    match thread {
        Some(thread) => table.send_to_thread(target, thread, info)?,
        None => table.send(target, info),
    }
    Ok(0)
}

/// Bytes of `struct signalfd_siginfo`.
const SIGNAL_RECORD: usize = 128;
/// The code of a signal from a timer.
pub const SI_TIMER: i32 = -2;

/// A descriptor that signals are read from (signalfd(2)): an event of the host that counts up when one of them comes, so
/// that it can be waited for like any other.
fn signal_file(task: &Task, [descriptor, mask, size, ..]: Arguments, flags: u64) -> Result {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask = Set(lock(&task.memory).word(mask)?).blockable();
    if descriptor as u32 != u32::MAX {
        let file = task.file(descriptor)?;
        lock(&task.kernel.table).process(task.pid)?.watch(&file, mask);
        return Ok(descriptor);
    }
    let fd = host::call(libc::SYS_eventfd2, [0.into(), (flags | libc::EFD_CLOEXEC as u64).into()])?;
    // SAFETY: the host has just given this descriptor to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let file = Arc::new(OpenFile::of(fd, b"anon_inode:[signalfd]".to_vec(), Kind::Signals));
    let number = lock(&task.descriptors).add(file.clone(), flags & libc::SFD_CLOEXEC as u64 != 0, 0)?;
    lock(&task.kernel.table).process(task.pid)?.watch(&file, mask);
    Ok(number)
}

/// Reads as many signals as fit, waiting for the first where the descriptor says so.
pub fn read_signals(task: &Task, file: &OpenFile, room: usize) -> Result<Vec<u8>> {
    if room < SIGNAL_RECORD {
        return Err(Errno::EINVAL);
    }
    loop {
        // The event counts no more; what is left beyond the room makes it count again.
        let mut count = [0; 8];
        host::blocking(task.flag(), libc::SYS_read, [file.as_raw_fd().into(), Arg::from(&mut count), 8.into()])?;
        let mut records = Vec::new();
        let mut table = lock(&task.kernel.table);
        let process = table.process(task.pid)?;
        let mask = process.watched(file);
        while records.len() + SIGNAL_RECORD <= room
            && let Some(info) = process.take(task.tid, |signal| mask.has(signal))
        {
            records.extend_from_slice(&record(&info));
        }
        process.tell_files();
        if !records.is_empty() {
            return Ok(records);
        }
    }
}

/// A signal as `struct signalfd_siginfo`.
fn record(info: &Info) -> [u8; SIGNAL_RECORD] {
    let mut bytes = [0; SIGNAL_RECORD];
    let mut put = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    let [low, high] = [info.fields[0] as u32, (info.fields[0] >> 32) as u32];
    put(0, info.signal.into());
    put(8, info.code.cast_unsigned());
    // Who sent it; of a child how it ended; of a timer which, and its value.
    if info.code == SI_TIMER {
        put(24, low);
        put(32, high);
    } else {
        put(12, low);
        put(16, high);
        put(40, info.fields[1] as u32);
    }
    put(44, info.fields[1] as u32);
    bytes[48..56].copy_from_slice(&info.fields[1].to_le_bytes());
    bytes
}
