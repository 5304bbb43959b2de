//! The initramfs: at the end of memory below 4 GiB, its pages the host's page cache.

use std::fs::File;
use std::io;

use vm_memory::GuestMemoryMmap;

use super::{Error, Extent};
use crate::machine::memory::{self, PAGE};

/// The kernel looks for it no higher (`initrd_addr_max` of Linux on `x86_64`).
const HIGHEST: u64 = 0x8000_0000;

/// Maps `file` behind the kernel, which ends at `kernel_end`; there are `low` bytes of memory below 4 GiB.
pub fn load(memory: &GuestMemoryMmap, low: u64, kernel_end: u64, file: &File) -> Result<Extent, Error> {
    let metadata = file.metadata().map_err(Error::Initramfs)?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(Error::Initramfs(io::Error::new(io::ErrorKind::InvalidInput, "it is empty or no regular file")));
    }
    let (length, end) = (metadata.len(), low.min(HIGHEST));
    let too_big = || Error::InitramfsTooBig { size: length, kernel_end, memory: end };
    let room = length.checked_next_multiple_of(PAGE).ok_or_else(too_big)?;
    let start = (end & !(PAGE - 1)).checked_sub(room).filter(|start| *start >= kernel_end).ok_or_else(too_big)?;
    memory::map_file(memory, file, 0, start, room)?;
    Ok(Extent { start, length })
}
