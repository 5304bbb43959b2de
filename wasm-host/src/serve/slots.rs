//! Room for instances: the pooling allocator reserves the address space of all of them at once, so what there is is asked first.

use std::ffi::c_void;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::engine::SLOT;
use crate::error::{Error, Result};

/// How many of `wanted` instances have room.
pub fn available(wanted: u32) -> Result<u32> {
    let mut slots = wanted.max(1);
    loop {
        match reserve(slots) {
            Ok(()) => return Ok(slots),
            Err(_) if slots > 1 => slots /= 2,
            Err(error) => return Err(Error::io("reserve address space for one instance")(error)),
        }
    }
}

/// Reserves the address space of so many instances, and gives it back.
fn reserve(slots: u32) -> rustix::io::Result<()> {
    let length = SLOT.checked_mul(slots as usize).ok_or(rustix::io::Errno::NOMEM)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping where the kernel likes it; nothing else knows of it.
    let start: *mut c_void = unsafe { mmap_anonymous(null_mut(), length, ProtFlags::empty(), flags) }?;
    // SAFETY: it is the mapping made just now.
    unsafe { munmap(start, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_some_and_not_for_all() {
        assert_eq!(available(3).unwrap(), 3);
        let most = available(u32::MAX).unwrap();
        assert!((3..u32::MAX).contains(&most), "{most}");
    }
}
