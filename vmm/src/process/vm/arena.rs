//! Guest-physical memory: one sparse file in memory, mapped once, given to KVM in slots as it comes into use.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::Mutex;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use super::{VmError, lock};
use crate::paging::entry::PAGE_SIZE;
use crate::paging::translation::Slot;

/// Guest-physical address of the first frame: above 4 GiB there are no holes for devices.
pub const START: u64 = 1 << 32;

/// Bytes of the first slot. KVM takes about 10 bytes of kernel memory for each frame of a slot, used or not.
const FIRST_SLOT: u64 = 32 << 20;

/// The slot that exists to be removed; see [`Arena::drop_shadow_tables`].
const SPARE_SLOT: u32 = 0;

/// Guest-physical memory.
#[derive(Debug)]
pub struct Arena {
    memory: GuestMemoryMmap,
    file: File,
    host: u64,
    limit: u64,
    /// The slots in use, and the guest-physical end of the last.
    slots: Mutex<(u32, u64)>,
}

impl Arena {
    /// An arena of at most `limit` bytes. Nothing of it takes memory yet.
    pub fn new(limit: u64) -> Result<Self, VmError> {
        let failed = |what| move |error: io::Error| VmError::Memory(what, error);
        let fd =
            memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).map_err(|error| failed("make the file")(error.into()))?;
        let file = File::from(fd);
        file.set_len(limit).map_err(failed("size the file"))?;
        let offset = FileOffset::new(file.try_clone().map_err(failed("duplicate the descriptor"))?, 0);
        let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(START), limit as usize, Some(offset))])
            .map_err(|error| failed("map the file")(io::Error::other(error)))?;
        let host = memory
            .get_host_address(GuestAddress(START))
            .map_err(|error| failed("find the start")(io::Error::other(error)))? as u64;
        Ok(Self { memory, file, host, limit, slots: Mutex::new((SPARE_SLOT + 1, START)) })
    }

    /// The memory as the rust-vmm crates see it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The host's address of a guest-physical one.
    pub fn host(&self, physical: u64) -> *mut u8 {
        debug_assert!((START..START + self.limit).contains(&physical));
        (self.host + (physical - START)) as *mut u8
    }

    /// Gives KVM memory up to guest-physical `end`; each slot doubles what there is.
    pub fn grow(&self, vm: &VmFd, end: u64) -> Result<(), VmError> {
        let mut slots = lock(&self.slots);
        while slots.1 < end {
            let have = slots.1 - START;
            let size = have.max(FIRST_SLOT).min(self.limit - have);
            set_slot(vm, slots.0, slots.1, size, self.host(slots.1))?;
            *slots = (slots.0 + 1, slots.1 + size);
        }
        Ok(())
    }

    /// The slot that holds a guest-physical address, among those KVM has.
    pub fn slot(&self, physical: u64) -> Option<Slot> {
        let (_, end) = *lock(&self.slots);
        let (mut index, mut start) = (SPARE_SLOT as usize + 1, START);
        while start < end {
            let length = (start - START).max(FIRST_SLOT).min(self.limit - (start - START));
            if (start..start + length).contains(&physical) {
                return Some(Slot { index, start, length, host: self.host(start) as u64 });
            }
            (index, start) = (index + 1, start + length);
        }
        None
    }

    /// Makes KVM forget what it maps of `count` frames. Their contents stay.
    pub fn zap(&self, start: u64, count: u64) {
        self.advise(start, count, libc::MADV_DONTNEED);
    }

    /// Has the host provide the memory of frames in one go rather than page by page.
    pub fn populate(&self, start: u64, count: u64) {
        self.advise(start, count, libc::MADV_POPULATE_WRITE);
    }

    /// Has the host map the pages of a window that are in its page cache.
    pub fn populate_read(&self, start: u64, count: u64) {
        self.advise(start, count, libc::MADV_POPULATE_READ);
    }

    /// Gives the memory of frames back to the host; they read as zeroes afterwards, and KVM forgets what it maps of them.
    pub fn discard(&self, start: u64, count: u64) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, length) = ((start - START) as i64, (count * PAGE_SIZE) as i64);
        // SAFETY: punching a hole touches no memory of ours but the frames', which nobody uses.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
    }

    /// Maps `count` pages of `file` from `offset` on over frames; with `shared` writes go to the file.
    pub fn map_file(&self, start: u64, count: u64, file: BorrowedFd, offset: u64, shared: bool) -> io::Result<()> {
        let (protection, flags) = if shared {
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
        } else {
            (libc::PROT_READ, libc::MAP_PRIVATE)
        };
        self.remap(start, count, protection, flags, file, offset)
    }

    /// Puts the arena's own memory back where a file was mapped.
    pub fn unmap_file(&self, start: u64, count: u64) -> io::Result<()> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        self.remap(start, count, protection, flags, self.file.as_fd(), start - START)
    }

    fn remap(
        &self,
        start: u64,
        count: u64,
        protection: i32,
        flags: i32,
        file: BorrowedFd,
        offset: u64,
    ) -> io::Result<()> {
        let (at, length) = (self.host(start).cast(), (count * PAGE_SIZE) as usize);
        // SAFETY: the range lies within the arena's mapping, and its frames belong to the caller.
        let mapped =
            unsafe { libc::mmap(at, length, protection, flags | libc::MAP_FIXED, file.as_raw_fd(), offset as i64) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn advise(&self, start: u64, count: u64, advice: i32) {
        // SAFETY: the range lies within the arena's shared mapping: no advice used here changes what it holds.
        unsafe { libc::madvise(self.host(start).cast(), (count * PAGE_SIZE) as usize, advice) };
    }

    /// Makes KVM drop every shadow table of the VM, as it does when a slot goes.
    pub fn drop_shadow_tables(&self, vm: &VmFd) -> Result<(), VmError> {
        let _alone = lock(&self.slots);
        let spare = START + self.limit;
        set_slot(vm, SPARE_SLOT, spare, PAGE_SIZE, self.host(START))?;
        set_slot(vm, SPARE_SLOT, spare, 0, self.host(START))
    }
}

fn set_slot(vm: &VmFd, slot: u32, start: u64, size: u64, host: *mut u8) -> Result<(), VmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: start,
        memory_size: size,
        userspace_addr: host as u64,
    };
    // SAFETY: the arena's mapping outlives the VM: one struct owns both, and processes end before it is dropped.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| VmError::Kvm("add a memory slot", error))
}
