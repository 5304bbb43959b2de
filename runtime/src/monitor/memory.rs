//! The memory of a monitor that only waits: making a sandbox takes most of the program, waiting for its end very little.

use std::ffi::c_void;

use nix::sys::mman::{MmapAdvise, madvise};
use nix::unistd::{SysconfVar, sysconf};

unsafe extern "C" {
    /// Where the program begins in memory; set by the linker (`ld(1)`).
    static __executable_start: u8;
    /// Where its code ends (`end(3)`).
    static etext: u8;
}

/// Gives back the pages of the program's code and constants, and what the allocator holds free. What is needed again
/// comes from the page cache. That the kernel will not do so is no reason to stop.
pub(super) fn give_back() {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| usize::try_from(size).ok());
    let page = page.unwrap_or(4096);
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() / page * page;
    if let Some(start) = std::ptr::NonNull::new(start as *mut c_void) {
        // SAFETY: between the two lie only read-only mappings of the program's file, which nothing has written to
        // (relocations are in the segments behind): a page that is dropped reads the same when it is needed again.
        let _ = unsafe { madvise(start, end - start.as_ptr().addr(), MmapAdvise::MADV_DONTNEED) };
    }
    // SAFETY: the process has one thread; the allocator only returns what is free.
    unsafe { libc::malloc_trim(0) };
}
