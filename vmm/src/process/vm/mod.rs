//! The VM: guest-physical memory, its frames, vCPUs, the stub that leaves ring 3, and the time.

pub mod arena;
pub mod clock;
pub mod cpuid;
pub mod exits;
pub mod frames;
pub mod layout;
pub mod supervisor;
pub mod vcpu;
mod vdso;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_runtime::span::{self, Phase};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;
use vm_memory::{Bytes as _, GuestAddress};

use self::arena::Arena;
use self::clock::Clock;
use self::exits::Counts;
use self::frames::FrameAllocator;
use self::vcpu::{Model, Vcpu};
use crate::host;
use crate::paging::entry::PAGE_SIZE;
use crate::paging::tables::{AddressSpace, EditError, Frames, Rights};
use crate::paging::{Entry, PageSize};
use crate::vcpu::translate::Checked;

/// Why the VM cannot be set up.
#[derive(Debug, Error)]
pub enum VmError {
    /// A KVM call failed.
    #[error("cannot {0}: {1}; is /dev/kvm usable here?")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// Guest memory cannot be had.
    #[error("cannot {0} of the guest's memory: {1}")]
    Memory(&'static str, io::Error),
    /// Page tables cannot be written.
    #[error(transparent)]
    Tables(#[from] EditError),
}

/// What may be done with the pages that stand in every address space.
const CODE: Rights = Rights { user: true, write: false, execute: true };
const DATA: Rights = Rights { user: true, write: false, execute: false };
const HIDDEN: Rights = Rights { user: false, write: true, execute: false };

/// Bytes of guest-physical addresses at least: files that are mapped take some too, and the limit may be raised.
const RESERVE: u64 = 64 << 30;

/// How many retired page tables are kept until all shadow tables are dropped at once, so that they can serve again.
const RETIRED_TABLES: usize = 1024;

/// One VM, shared by all of its processes.
#[derive(Debug)]
pub struct Vm {
    /// Guest-physical memory.
    pub arena: Arena,
    fd: VmFd,
    model: Model,
    frames: Mutex<FrameAllocator>,
    retired: Mutex<Vec<u64>>,
    idle: Mutex<Idle>,
    /// How often ring 3 was left.
    pub exits: Counts,
    /// The time, where programs can read it themselves.
    pub clock: Option<Clock>,
    /// Where each address space has which page, and what may be done with it.
    fixed: Vec<(u64, u64, Rights)>,
}

/// The vCPUs that no thread uses.
#[derive(Debug, Default)]
struct Idle {
    ready: Vec<Vcpu>,
    unprepared: Vec<Vcpu>,
    /// How many there are with those in use: the next one's number.
    made: u64,
}

impl Idle {
    fn make(&mut self, vm: &VmFd) -> Result<Vcpu, VmError> {
        loop {
            match Vcpu::new(vm, self.made) {
                // KVM has made it, but then the process had no room for the page they share.
                Err(VmError::Kvm(_, error)) if error.errno() == libc::EEXIST => self.made += 1,
                made => {
                    self.made += u64::from(made.is_ok());
                    return made;
                }
            }
        }
    }
}

/// Takes a lock; what a panicking thread left is as good as what it found, each holder leaves whole states only.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    /// A VM whose programs have at most `limit` bytes of memory, through an open `/dev/kvm`.
    pub fn new(kvm: &Kvm, limit: u64) -> Result<Self, VmError> {
        let fd = kvm.create_vm().map_err(|error| VmError::Kvm("create a VM", error))?;
        let reserve = limit.max(RESERVE);
        // Nothing interrupts a guest. But a vCPU whose local APIC is not KVM's has the host's kernel patch its own code when the
        // first such one is made and when the last one goes, which takes milliseconds; where KVM cannot have it, it is so.
        let apic = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        let _ = fd.enable_cap(&apic);
        span::mark(Phase::Memory);
        let arena = Arena::new(reserve)?;
        let mut frames = FrameAllocator::new(reserve, limit);
        arena.grow(&fd, frames.end())?;
        let short = || VmError::Memory("reserve the first pages", io::ErrorKind::OutOfMemory.into());
        let has_ring_0 = host::has_hardware_virtualization();
        let hidden = if has_ring_0 { layout::TABLES } else { layout::TASK };
        let pages = [(layout::STUB, CODE), (hidden, HIDDEN), (layout::CLOCK, DATA), (layout::VDSO, CODE)];
        let mut fixed = Vec::new();
        for (address, rights) in pages {
            fixed.push((address, frames.allocate(1).ok_or_else(short)?, rights));
        }
        let [stub, hidden, page, vdso] = std::array::from_fn(|at| fixed[at].1);
        let write = |bytes: &[u8], at| {
            let written = arena.memory().write_slice(bytes, GuestAddress(at));
            written.map_err(|error| VmError::Memory("write the first pages", io::Error::other(error)))
        };
        write(&layout::stub(), stub)?;
        write(&vdso::image(), vdso)?;
        let mut blocks = None;
        if has_ring_0 {
            write(&supervisor::tables(), hidden)?;
            // None of it is the programs' memory, and little of it is ever touched.
            let count = layout::BLOCKS_LENGTH / PAGE_SIZE;
            let start = frames.window(count).ok_or_else(short)?;
            fixed.extend((0..count).map(|page| page * PAGE_SIZE).map(|at| (layout::BLOCKS + at, start + at, HIDDEN)));
            // SAFETY: the window is as long, no frame of it is given to anyone else, and no vCPU runs once the VM is gone.
            blocks = Some(unsafe { supervisor::Blocks::new(arena.host(start)) });
        } else {
            // The I/O permission bitmap starts at byte 104 of the task segment, as the word at 102 says; zeroes allow.
            write(&104u16.to_le_bytes(), hidden + 102)?;
        }
        let model = Model { cpuid: cpuid::table(), blocks };
        let mut idle = Idle::default();
        let mut clock = Clock::new(arena.host(page));
        if has_ring_0 {
            let mut vcpu = idle.make(&fd)?;
            vcpu.prepare(&model)?;
            clock = clock.filter(|_| vcpu.count_as_the_host());
            idle.ready.push(vcpu);
        }
        let (frames, retired, idle) = (Mutex::new(frames), Mutex::default(), Mutex::new(idle));
        let exits = Counts::default();
        Ok(Self { arena, fd, model, frames, retired, idle, exits, clock, fixed })
    }

    /// A vCPU that no thread uses.
    pub fn vcpu(&self) -> Result<Vcpu, VmError> {
        let mut idle = lock(&self.idle);
        if let Some(vcpu) = idle.ready.pop() {
            return Ok(vcpu);
        }
        // KVM has no end for a vCPU but the VM's: one that was made is kept, whatever else fails.
        let mut vcpu = match idle.unprepared.pop() {
            Some(vcpu) => vcpu,
            None => idle.make(&self.fd)?,
        };
        drop(idle);
        let prepared = vcpu.prepare(&self.model).and_then(|()| {
            let counts = self.clock.is_none() || vcpu.count_as_the_host();
            if counts { Ok(()) } else { Err(VmError::Kvm("set a vCPU's clock", kvm_ioctls::Error::last())) }
        });
        match prepared {
            Ok(()) => Ok(vcpu),
            Err(error) => {
                lock(&self.idle).unprepared.push(vcpu);
                Err(error)
            }
        }
    }

    /// Follows an address through the page tables at `root`, which nobody may change meanwhile, on a vCPU that no thread uses.
    pub fn translate(&self, root: u64, address: u64) -> Result<Checked, String> {
        let mut vcpu = self.vcpu().map_err(|error| error.to_string())?;
        let checked = vcpu.translate(self.arena.memory(), root, address);
        self.put_vcpu(vcpu);
        let mut checked = checked?;
        checked.translation.slot = checked.translation.guest_physical.and_then(|physical| self.arena.slot(physical));
        Ok(checked)
    }

    /// Takes back a vCPU whose thread has ended.
    pub fn put_vcpu(&self, vcpu: Vcpu) {
        lock(&self.idle).ready.push(vcpu);
    }

    /// Changes how many bytes of memory programs have at most.
    ///
    /// # Errors
    /// How many they have, where that is more.
    pub fn set_limit(&self, limit: u64) -> Result<(), u64> {
        lock(&self.frames).set_limit(limit)
    }

    /// `count` frames in a row, each in use once; `None` where the limit is reached. They read as zeroes.
    pub fn allocate(&self, count: u64) -> Option<u64> {
        self.take(count, FrameAllocator::allocate)
    }

    fn take(&self, count: u64, take: fn(&mut FrameAllocator, u64) -> Option<u64>) -> Option<u64> {
        let mut frames = lock(&self.frames);
        let before = frames.end();
        let start = take(&mut frames, count)?;
        if frames.end() != before && self.arena.grow(&self.fd, frames.end()).is_err() {
            frames.free(start, count);
            return None;
        }
        Some(start)
    }

    /// `count` frames in a row for a file to be mapped over.
    pub fn window(&self, count: u64) -> Option<u64> {
        self.take(count, FrameAllocator::window)
    }

    /// Takes back the frames of a window; the arena's own memory is behind them again.
    pub fn close_window(&self, start: u64, count: u64) {
        lock(&self.frames).free(start, count);
    }

    /// Whether a frame stands behind a window.
    pub fn is_window(&self, frame: u64) -> bool {
        lock(&self.frames).is_window(frame)
    }

    /// One more use of a frame.
    pub fn share(&self, frame: u64) {
        lock(&self.frames).share(frame);
    }

    /// Whether a frame is in use once.
    pub fn is_sole(&self, frame: u64) -> bool {
        lock(&self.frames).uses(frame) == 1
    }

    /// One use less of each frame. Those no longer used are given back to the host; what the shadow tables hold of the
    /// others is dropped. Either way nothing that used them reaches them any more.
    pub fn release(&self, mut dropped: Vec<u64>) {
        dropped.sort_unstable();
        let mut frames = lock(&self.frames);
        let (unused, shared): (Vec<u64>, Vec<u64>) = dropped.into_iter().partition(|&frame| frames.drop_use(frame));
        // Frames are free for others only after the host has taken the memory back.
        drop(frames);
        let unused: Vec<_> = frames::runs(&unused).collect();
        for &(start, count) in &unused {
            self.arena.discard(start, count);
        }
        for (start, count) in frames::runs(&shared) {
            self.arena.zap(start, count);
        }
        let mut frames = lock(&self.frames);
        for (start, count) in unused {
            frames.free(start, count);
        }
    }

    /// Makes what was taken from the pages in these frames take effect.
    pub fn zap(&self, mut dropped: Vec<u64>) {
        dropped.sort_unstable();
        dropped.dedup();
        for (start, count) in frames::runs(&dropped) {
            self.arena.zap(start, count);
        }
    }

    /// An empty address space, but for what stands in each.
    pub fn space(&self) -> Result<AddressSpace, EditError> {
        let mut frames = self;
        let memory = self.arena.memory();
        let mut space = AddressSpace::new(memory, &mut frames, false, true)?;
        for &(address, frame, rights) in &self.fixed {
            let _ = space.map(memory, &mut frames, (address, frame), PageSize::Small, rights)?;
        }
        Ok(space)
    }

    /// Takes back the page tables of a process that is gone.
    pub fn retire(&self, space: AddressSpace) {
        let mut retired = Retired(Vec::new());
        space.give_up(self.arena.memory(), &mut retired);
        let mut all = lock(&self.retired);
        all.extend(retired.0);
        if all.len() < RETIRED_TABLES {
            return;
        }
        let frames = std::mem::take(&mut *all);
        drop(all);
        if self.arena.drop_shadow_tables(&self.fd).is_ok() {
            self.release(frames);
        } else {
            lock(&self.retired).extend(frames);
        }
    }
}

/// Collects the frames of an address space that is given up.
struct Retired(Vec<u64>);

impl Frames for Retired {
    fn allocate(&mut self) -> Option<u64> {
        None
    }

    fn free(&mut self, frame: u64) {
        self.0.push(frame);
    }
}

impl Frames for &Vm {
    fn allocate(&mut self) -> Option<u64> {
        Vm::allocate(self, 1)
    }

    fn free(&mut self, frame: u64) {
        lock(&self.retired).push(frame);
    }
}

const _: () = assert!(arena::START & !Entry::ADDRESS == 0, "frames start at a page");
