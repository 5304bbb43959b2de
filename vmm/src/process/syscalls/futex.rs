//! Futexes. A waiter is found by its word: private ones by address space and address, shared ones by the frame.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::Arguments;
use crate::process::Result;
use crate::process::task::Task;
use crate::process::task::gate::Event;
use crate::process::vm::lock;

const FUTEX_BITSET_ALL: u32 = u32::MAX;
const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
const FUTEX_WAITERS: u32 = 0x8000_0000;
const FUTEX_TID: u32 = 0x3fff_ffff;
/// Most entries of a robust list that are looked at.
const MOST_ROBUST: usize = 2048;

/// What a waiter waits for: an address space (0 for shared memory) and an address in it, or a guest-physical address.
type Key = (usize, u64);

#[derive(Debug)]
struct Waiter {
    bits: u32,
    event: Event,
    woken: AtomicU32,
}

/// Everyone who waits.
#[derive(Debug, Default)]
pub struct Futexes(Mutex<HashMap<Key, Vec<Arc<Waiter>>>>);

impl Futexes {
    fn wake(waiting: &mut HashMap<Key, Vec<Arc<Waiter>>>, key: Key, count: u64, bits: u32) -> u64 {
        let Some(queue) = waiting.get_mut(&key) else { return 0 };
        let mut woken = 0;
        queue.retain(|waiter| {
            if woken == count || waiter.bits & bits == 0 {
                return true;
            }
            woken += 1;
            waiter.woken.store(1, Ordering::SeqCst);
            waiter.event.notify();
            false
        });
        if queue.is_empty() {
            waiting.remove(&key);
        }
        woken
    }
}

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    Some(match number {
        libc::SYS_futex => futex(task, a),
        libc::SYS_set_robust_list => {
            task.robust_list = a[0];
            Ok(0)
        }
        libc::SYS_get_robust_list => {
            let mut memory = lock(&task.memory);
            memory
                .write(a[1], &task.robust_list.to_le_bytes())
                .and_then(|()| memory.write(a[2], &24u64.to_le_bytes()))
                .map(|()| 0)
        }
        _ => return None,
    })
}

fn futex(task: &Task, [address, operation, value, timeout, second, third]: Arguments) -> Result {
    let operation = operation as i32;
    if address % 4 != 0 {
        return Err(Errno::EINVAL);
    }
    let realtime = operation & libc::FUTEX_CLOCK_REALTIME != 0;
    match operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) {
        libc::FUTEX_WAIT => wait(task, address, value as u32, FUTEX_BITSET_ALL, (timeout, false, realtime)),
        libc::FUTEX_WAIT_BITSET => wait(task, address, value as u32, third as u32, (timeout, true, realtime)),
        libc::FUTEX_WAKE => wake(task, address, value, FUTEX_BITSET_ALL),
        libc::FUTEX_WAKE_BITSET => wake(task, address, value, third as u32),
        libc::FUTEX_REQUEUE => requeue(task, address, (value, timeout), second, None),
        libc::FUTEX_CMP_REQUEUE => requeue(task, address, (value, timeout), second, Some(third as u32)),
        _ => Err(Errno::ENOSYS),
    }
}

/// The key of a word, and its value.
fn key(task: &Task, address: u64) -> Result<(Key, u32)> {
    let mut memory = lock(&task.memory);
    let value = memory.half(address)?;
    let shared = memory.shared_frame(address)?;
    let space = Arc::as_ptr(&task.memory) as usize;
    Ok((shared.map_or((space, address), |frame| (0, frame)), value))
}

fn wait(
    task: &Task,
    address: u64,
    expected: u32,
    bits: u32,
    (timeout, absolute, realtime): (u64, bool, bool),
) -> Result {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    let timeout = match timeout {
        0 => None,
        at => Some(super::time::timespec(task, at)?),
    };
    let deadline = timeout.map(|timeout| super::time::Deadline::new(timeout, absolute, realtime));
    let waiter = Arc::new(Waiter { bits, event: Event::default(), woken: AtomicU32::new(0) });
    let mut waiting = lock(&task.kernel.futexes.0);
    // Under the lock: a wake that follows the change of the word finds the waiter.
    let (key, value) = key(task, address)?;
    if value != expected {
        return Err(Errno::EAGAIN);
    }
    waiting.entry(key).or_default().push(waiter.clone());
    drop(waiting);
    loop {
        let seen = waiter.event.now();
        if waiter.woken.load(Ordering::SeqCst) != 0 {
            return Ok(0);
        }
        let left = deadline.as_ref().map(super::time::Deadline::left);
        if let Err(error) = waiter.event.wait(task.flag(), seen, left.as_ref()) {
            let mut waiting = lock(&task.kernel.futexes.0);
            if waiter.woken.load(Ordering::SeqCst) != 0 {
                return Ok(0);
            }
            // It may have been requeued.
            waiting.retain(|_, queue| {
                queue.retain(|other| !Arc::ptr_eq(other, &waiter));
                !queue.is_empty()
            });
            return Err(error);
        }
    }
}

fn wake(task: &Task, address: u64, count: u64, bits: u32) -> Result {
    let (key, _) = key(task, address)?;
    Ok(Futexes::wake(&mut lock(&task.kernel.futexes.0), key, count.min(i32::MAX as u64), bits))
}

fn requeue(task: &Task, address: u64, (count, most): (u64, u64), to: u64, expected: Option<u32>) -> Result {
    let mut waiting = lock(&task.kernel.futexes.0);
    let (from, value) = key(task, address)?;
    if expected.is_some_and(|expected| expected != value) {
        return Err(Errno::EAGAIN);
    }
    let (to, _) = key(task, to)?;
    let woken = Futexes::wake(&mut waiting, from, count, FUTEX_BITSET_ALL);
    let mut queue = waiting.remove(&from).unwrap_or_default();
    let stay = queue.split_off((most as usize).min(queue.len()));
    let moved = queue.len() as u64;
    if !stay.is_empty() {
        waiting.insert(from, stay);
    }
    if !queue.is_empty() {
        waiting.entry(to).or_default().extend(queue);
    }
    Ok(woken + moved)
}

impl Task {
    /// Wakes who waits on a word of this task's memory.
    pub fn wake_futex(&self, address: u64, count: u64) -> Result {
        wake(self, address, count, FUTEX_BITSET_ALL)
    }

    /// Marks the locks that this thread holds and will not release any more (`set_robust_list(2)`).
    pub fn release_robust_futexes(&mut self) {
        let head = std::mem::take(&mut self.robust_list);
        if head == 0 {
            return;
        }
        let offset = lock(&self.memory).word(head + 8).unwrap_or(0);
        let mut entry = lock(&self.memory).word(head).unwrap_or(head);
        for _ in 0..MOST_ROBUST {
            if entry & !1 == head {
                return;
            }
            let address = (entry & !1).wrapping_add(offset);
            let mut memory = lock(&self.memory);
            let Ok(value) = memory.half(address) else { return };
            let next = memory.word(entry & !1);
            if value & FUTEX_TID == self.tid as u32 {
                let dead = value & FUTEX_WAITERS | FUTEX_OWNER_DIED;
                let _ = memory.write(address, &dead.to_le_bytes());
                drop(memory);
                let _ = self.wake_futex(address, 1);
            }
            let Ok(next) = next else { return };
            entry = next;
        }
    }
}
