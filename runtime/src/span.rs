//! Spans: where the time of a start goes. `berth bench` hands a memory file down the chain of processes that make a sandbox,
//! and each of them writes into it when it begins a [`Phase`]. From one such moment to the next, the phase is under way.
//!
//! ```text
//! berth bench ── berth ── berth-oci monitor ── first process ── berth-vmm, berth-wasm
//!    makes it    [`inherit`]   [`inherit`]      copied by fork    [`take`], by its handover
//! ```
//!
//! Without the variable [`VARIABLE`] there is no file, and a mark is one look at a number. The file can only be
//! appended to, by the seal and the flag it was made with. It is closed by whatever program a process becomes: only
//! [`pass_on`] lets the next one have it, and an image's program is never the next one. An executor closes it before its
//! guest or module gets to run ([`Phase::Run`] is the last it marks).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, open};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};

/// Names the descriptor, as `number:device:inode`: a number alone could mean another file where nobody handed this one on.
pub const VARIABLE: &str = "BERTH_SPANS";
/// What an executor's handover calls the file.
pub const FILE: &str = "spans";
/// Bytes of a record: the phase and the time, eight each.
const RECORD: usize = 16;
/// The most records that are read. A start leaves about twenty.
const MAX_RECORDS: u64 = 4096;

/// What a start is doing, in the order in which it is first done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u64)]
pub enum Phase {
    /// `berth` itself begins: its arguments, and what crashes have left.
    Command,
    /// The image and its layers are found; for a module, its code.
    Image,
    /// The record, the bundle and the files of this one start are written.
    Bundle,
    /// Namespaces, state, devices, users, the root changed.
    Sandbox,
    /// Control groups.
    Cgroup,
    /// Mounts.
    Mounts,
    /// The sandbox's network.
    Network,
    /// The executor is executed, and reads what it is handed.
    Executor,
    /// The VM and its vCPUs are made.
    VmCreate,
    /// Guest memory is set up, with the kernel in it where there is one.
    Memory,
    /// The guest's kernel boots, until its init is connected.
    Boot,
    /// The program is loaded: by the kernel, the VMM, or as compiled code.
    Load,
    /// The program runs, from its first instruction on.
    Run,
    /// It has ended; what was made for it is removed.
    End,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 14] = [
        Self::Command,
        Self::Image,
        Self::Bundle,
        Self::Sandbox,
        Self::Cgroup,
        Self::Mounts,
        Self::Network,
        Self::Executor,
        Self::VmCreate,
        Self::Memory,
        Self::Boot,
        Self::Load,
        Self::Run,
        Self::End,
    ];
}

/// The most records a process writes, whatever it is made to do.
const MOST: u32 = 64;

/// How many this one has written.
static WRITTEN: AtomicU32 = AtomicU32::new(0);
/// The file of this process; -1: there is none.
static SPANS: AtomicI32 = AtomicI32::new(-1);

/// Takes over the file that the environment names, if it does, and keeps it from the programs this one executes. For the beginning
/// of a program.
pub fn inherit() {
    let Some(value) = std::env::var_os(VARIABLE) else { return };
    let parse = |value: &str| {
        let mut parts = value.split(':');
        let number: RawFd = parts.next()?.parse().ok()?;
        let identity: (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (number > 2).then_some((number, identity))
    };
    let Some((number, identity)) = value.to_str().and_then(parse) else { return };
    // SAFETY: it is only looked at, for as long as this function runs; a number that is not open is an error of that.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let is_it = fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity);
    if is_it && fcntl_setfd(fd, FdFlags::CLOEXEC).is_ok() {
        SPANS.store(number, Ordering::Relaxed);
    }
}

/// Takes over the file that an executor was handed.
pub fn take(number: Option<RawFd>) {
    SPANS.store(number.unwrap_or(-1), Ordering::Relaxed);
}

/// Lets the program that is executed next have the file.
pub fn pass_on() -> rustix::io::Result<()> {
    with(|fd| fcntl_setfd(fd, FdFlags::empty())).unwrap_or(Ok(()))
}

/// A copy of the file for an executor, if there is a file.
pub(crate) fn copy() -> Option<OwnedFd> {
    with(|fd| fd.try_clone_to_owned().ok()).flatten()
}

/// A phase begins.
pub fn mark(phase: Phase) {
    with(|fd| {
        if WRITTEN.fetch_add(1, Ordering::Relaxed) >= MOST {
            return;
        }
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&(phase as u64).to_le_bytes());
        record[8..].copy_from_slice(&now().to_le_bytes());
        // That a measurement is lost is for its reader to notice.
        let _ = rustix::io::write(fd, &record);
    });
}

/// The program of the guest or module begins, and must not find the file.
pub fn run() {
    mark(Phase::Run);
    let number = SPANS.swap(-1, Ordering::Relaxed);
    if number >= 0 {
        // SAFETY: an executor owns what it was handed, and nobody finds the number any more.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
}

fn with<T>(act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    let number = SPANS.load(Ordering::Relaxed);
    // SAFETY: the number is that of an open file until `run` has taken it away, which is the last use.
    (number >= 0).then(|| act(unsafe { BorrowedFd::borrow_raw(number) }))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a host read alike.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The reader's side: the file of one start.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    /// The same file, to be appended to alone. It is inherited.
    appended: OwnedFd,
}

impl Recorder {
    /// An empty file.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("spans", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let appended = open(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file, appended })
    }

    /// What the process to be started is to inherit, and the value of [`VARIABLE`] for it.
    pub fn to_inherit(&self) -> io::Result<(&OwnedFd, String)> {
        let stat = fstat(&self.appended)?;
        Ok((&self.appended, format!("{}:{}:{}", self.appended.as_raw_fd(), stat.st_dev, stat.st_ino)))
    }

    /// The moments at which phases began, in the order of time.
    pub fn moments(mut self) -> io::Result<Vec<(Phase, u64)>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.take(MAX_RECORDS * RECORD as u64).read_to_end(&mut bytes)?;
        let mut moments: Vec<_> = bytes.chunks_exact(RECORD).filter_map(decode).collect();
        moments.sort_by_key(|&(_, time)| time);
        Ok(moments)
    }
}

fn decode(record: &[u8]) -> Option<(Phase, u64)> {
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).ok();
    let phase = Phase::ALL.get(usize::try_from(number(&record[..8])?).ok()?)?;
    Some((*phase, number(&record[8..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_back_in_order_and_nonsense_does_not() {
        let recorder = Recorder::new().unwrap();
        let (fd, value) = recorder.to_inherit().unwrap();
        assert!(value.starts_with(&format!("{}:", fd.as_raw_fd())));
        let write = |phase: u64, time: u64| {
            let record = [phase.to_le_bytes(), time.to_le_bytes()].concat();
            rustix::io::write(fd, &record).unwrap();
        };
        write(Phase::Run as u64, 7);
        write(99, 1);
        write(u64::MAX, 1);
        write(Phase::Image as u64, 3);
        rustix::io::write(fd, b"half").unwrap();
        assert_eq!(recorder.moments().unwrap(), [(Phase::Image, 3), (Phase::Run, 7)]);
    }

    #[test]
    fn what_is_written_stays() {
        let recorder = Recorder::new().unwrap();
        let (fd, _) = recorder.to_inherit().unwrap();
        rustix::io::write(fd, &[0; RECORD]).unwrap();
        // Neither cut off nor written over.
        assert!(rustix::fs::ftruncate(fd, 0).is_err());
        rustix::io::pwrite(fd, &[1; RECORD], 0).unwrap();
        assert!(rustix::io::read(fd, &mut [0; 1]).is_err());
        assert_eq!(recorder.moments().unwrap(), [(Phase::Command, 0)]);
    }

    #[test]
    fn each_phase_has_its_number() {
        for (number, phase) in (0..).zip(Phase::ALL) {
            assert_eq!(phase as u64, number);
        }
    }
}
