//! Guest memory whose edges are watched.

use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::devices::Memory;

/// Bytes of guest memory from address 0.
pub const LOW_SIZE: usize = 256 << 10;
/// Where guest memory continues after a hole.
pub const HIGH_BASE: u64 = 512 << 10;
/// Bytes of guest memory from [`HIGH_BASE`].
pub const HIGH_SIZE: usize = 64 << 10;

/// Bytes of watched memory before, between and after the guest's.
const GUARD: usize = 16 << 10;
const PATTERN: u8 = 0xa5;

/// Two regions of guest memory within a larger mapping, surrounded by bytes nobody may change.
pub struct GuardedMemory {
    base: *mut u8,
    /// The guest's memory. Must not outlive the mapping.
    pub memory: Memory,
}

impl GuardedMemory {
    const TOTAL: usize = GUARD + LOW_SIZE + GUARD + HIGH_SIZE + GUARD;
    const LOW_OFFSET: usize = GUARD;
    const HIGH_OFFSET: usize = GUARD + LOW_SIZE + GUARD;

    /// Fresh zeroed memory.
    ///
    /// # Panics
    /// Where the host has no memory left.
    #[allow(clippy::new_without_default, reason = "not a value")]
    pub fn new() -> Self {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping wherever the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), Self::TOTAL, protection, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let base = base.cast::<u8>();
        let region = |offset, size, address| {
            // SAFETY: the range lies in the mapping just made, which lives as long as the struct that owns both.
            let mapped = unsafe { MmapRegion::build_raw(base.add(offset), size, protection, flags) };
            GuestRegionMmap::new(mapped.expect("page-aligned"), GuestAddress(address)).expect("no overflow")
        };
        let low = region(Self::LOW_OFFSET, LOW_SIZE, 0);
        let high = region(Self::HIGH_OFFSET, HIGH_SIZE, HIGH_BASE);
        let result = Self { base, memory: Memory::from_regions(vec![low, high]).expect("disjoint regions") };
        for (offset, length) in Self::guards() {
            // SAFETY: within the mapping and outside the guest's regions, so nothing else refers to it.
            unsafe { std::ptr::write_bytes(base.add(offset), PATTERN, length) };
        }
        result
    }

    /// Whether nobody wrote outside the guest's memory.
    pub fn is_intact(&self) -> bool {
        Self::guards().into_iter().all(|(offset, length)| {
            // SAFETY: within the mapping, and nobody holds a mutable reference into it.
            unsafe { std::slice::from_raw_parts(self.base.add(offset), length) }.iter().all(|&byte| byte == PATTERN)
        })
    }

    fn guards() -> [(usize, usize); 3] {
        [(0, GUARD), (Self::LOW_OFFSET + LOW_SIZE, GUARD), (Self::HIGH_OFFSET + HIGH_SIZE, GUARD)]
    }
}

impl Drop for GuardedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; tests drop their devices before their memory.
        unsafe { libc::munmap(self.base.cast(), Self::TOTAL) };
    }
}
