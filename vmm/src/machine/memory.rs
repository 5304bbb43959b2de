//! Guest memory: private anonymous mappings, reserved by nobody until the guest touches them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::boot::layout::extents;

/// Size of a page of the host, the unit of mappings.
pub const PAGE: u64 = 4096;

/// Why guest memory cannot be had or used as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `mmap(2)` refused.
    #[error("mapping {size} bytes of guest memory: {source}; give the guest less with --memory")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What `mmap(2)` said.
        source: io::Error,
    },
    /// KVM refused the slot.
    #[error("giving KVM the memory slot at {start:#x}: {source}")]
    Slot {
        /// Guest-physical start of the slot.
        start: u64,
        /// What `KVM_SET_USER_MEMORY_REGION` said.
        source: io::Error,
    },
    /// A file cannot be mapped into guest memory.
    #[error("mapping a file into guest memory at {address:#x}: {source}")]
    MapFile {
        /// Guest-physical address.
        address: u64,
        /// What `mmap(2)` said.
        source: io::Error,
    },
    /// An address without memory behind it.
    #[error("{length:#x} bytes at {address:#x} are not in guest memory")]
    Outside {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        length: u64,
    },
}

/// Maps `size` bytes of guest memory, a multiple of [`PAGE`].
pub fn map(size: u64) -> Result<GuestMemoryMmap, Error> {
    let mut memory = GuestMemoryMmap::new();
    for extent in extents(size) {
        let failed = |source| Error::Map { size, source };
        let region = MmapRegionBuilder::new(extent.length as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(extent.start))
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        memory = memory.insert_region(region.into()).map_err(|error| failed(io::Error::other(error)))?;
    }
    Ok(memory)
}

/// Gives each region of `memory` to `vm` as a slot.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr().0;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is that long, and whoever holds the VM holds the memory for longer (see `Machine`).
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|error| Error::Slot { start, source: io::Error::from_raw_os_error(error.errno()) })?;
    }
    Ok(())
}

/// Maps `length` bytes of `file` from `offset` on into guest memory at `address`, privately: the guest reads the host's
/// page cache and what it writes becomes its own. All three must be multiples of [`PAGE`]; beyond the end of the file the
/// last page reads as zero.
pub fn map_file(memory: &GuestMemoryMmap, file: &File, offset: u64, address: u64, length: u64) -> Result<(), Error> {
    debug_assert!(offset.is_multiple_of(PAGE) && address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE));
    let outside = || Error::Outside { address, length };
    let region = memory.find_region(GuestAddress(address)).ok_or_else(outside)?;
    let start = address - region.start_addr().0;
    if start.checked_add(length).is_none_or(|end| end > region.len()) {
        return Err(outside());
    }
    // SAFETY: `start` is inside the region, checked above.
    let host = unsafe { region.as_ptr().add(start as usize) };
    // SAFETY: the range lies in the region's mapping, which is replaced there by another of the same protection; no
    // reference into guest memory exists, all access goes through volatile slices.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            length as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(Error::MapFile { address, source: io::Error::last_os_error() });
    }
    Ok(())
}
