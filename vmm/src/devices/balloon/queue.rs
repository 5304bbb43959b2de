//! What the balloon's chains hold.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::state::BalloonStatistics;
use crate::devices::Memory;
use crate::devices::buffers::Buffers;

/// Bytes of a page of the balloon, whatever the guest's own pages are.
pub const PAGE: u64 = 4096;
/// Pages looked at in one chain: drivers name 256. Bounds the system calls one chain causes.
const MAX_PAGES: usize = 1024;
/// Statistics looked at in one chain.
const MAX_STATISTICS: usize = 32;

/// Drops the pages whose numbers (32 bits each) are in `readable`; neighbours together. What is no memory is left alone.
/// Fails with the last of what the host refused.
pub fn inflate(mut readable: Buffers<'_>, memory: &Memory) -> io::Result<()> {
    let count = (readable.len() / 4).min(MAX_PAGES);
    let mut outcome = Ok(());
    let mut run: Option<(u64, u64)> = None;
    for _ in 0..count {
        let Ok(page) = readable.read_object::<u32>() else { break };
        let page = u64::from(u32::from_le(page));
        run = match run {
            Some((first, length)) if first + length == page => Some((first, length + 1)),
            // Linux hands pages over from high to low as often as from low to high.
            Some((first, length)) if page + 1 == first => Some((page, length + 1)),
            Some((first, length)) => {
                outcome = drop_pages(memory, first, length).and(outcome);
                Some((page, 1))
            }
            None => Some((page, 1)),
        };
    }
    let last = run.map_or(Ok(()), |(first, length)| drop_pages(memory, first, length));
    last.and(outcome)
}

/// Drops the free pages that `writable` consists of.
pub fn report(writable: &Buffers<'_>, memory: &Memory) -> io::Result<()> {
    let mut outcome = Ok(());
    for slice in writable.slices() {
        outcome = drop_slice(slice, is_shared(memory, slice)).and(outcome);
    }
    outcome
}

/// Reads what the guest says of its memory: tags of 16 bits with values of 64.
pub fn statistics(mut readable: Buffers<'_>) -> BalloonStatistics {
    let mut statistics = BalloonStatistics::default();
    for _ in 0..MAX_STATISTICS {
        let mut entry = [0; 10];
        if readable.read(&mut entry).is_err() {
            break;
        }
        let [tag_low, tag_high, value @ ..] = entry;
        let field = match u16::from_le_bytes([tag_low, tag_high]) {
            0 => &mut statistics.swapped_in,
            1 => &mut statistics.swapped_out,
            2 => &mut statistics.major_faults,
            3 => &mut statistics.minor_faults,
            4 => &mut statistics.free_memory,
            5 => &mut statistics.total_memory,
            6 => &mut statistics.available_memory,
            7 => &mut statistics.disk_caches,
            8 => &mut statistics.hugetlb_allocations,
            9 => &mut statistics.hugetlb_failures,
            _ => continue,
        };
        *field = Some(u64::from_le_bytes(value));
    }
    statistics
}

/// Drops `count` pages from page number `first` on.
fn drop_pages(memory: &Memory, first: u64, count: u64) -> io::Result<()> {
    let slices = memory.get_slices(GuestAddress(first * PAGE), (count * PAGE) as usize);
    let mut outcome = Ok(());
    for slice in slices.map_while(Result::ok) {
        outcome = drop_slice(&slice, is_shared(memory, &slice)).and(outcome);
    }
    outcome
}

/// Whether what a slice lies in is a shared mapping, whose pages are only gone when its file has lost them as well.
fn is_shared(memory: &Memory, slice: &VolatileSlice<'_>) -> bool {
    let start = slice.ptr_guard().as_ptr() as usize;
    let region = memory.iter().find(|region| {
        let base = region.as_ptr() as usize;
        (base..base + region.size()).contains(&start)
    });
    region.is_some_and(|region| region.flags() & libc::MAP_SHARED != 0)
}

/// Drops the whole pages within `slice`.
fn drop_slice(slice: &VolatileSlice<'_>, shared: bool) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let address = guard.as_ptr() as usize;
    let start = address.next_multiple_of(PAGE as usize);
    let end = (address + slice.len()) & !(PAGE as usize - 1);
    if start >= end {
        return Ok(());
    }
    let pointer = guard.as_ptr().wrapping_add(start - address);
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the range lies in the slice, so in guest memory, which nobody holds references into; that its contents
    // become zero is the guest's wish.
    if unsafe { libc::madvise(pointer.cast(), end - start, advice) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
