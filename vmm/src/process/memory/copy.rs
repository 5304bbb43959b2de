//! Reads and writes of a process's memory by system calls, with the rights the process itself has.

use nix::errno::Errno;
use vm_memory::{Bytes as _, GuestAddress};

use super::area::{Area, Source, find};
use super::{Failure, Memory, Resolution, page_of};
use crate::paging::entry::PAGE_SIZE;
use crate::process::Result;
use crate::process::vm::layout;

/// The longest path and the like that is read, with its end.
pub const PATH_MAX: usize = 4096;

impl Memory {
    /// Reads bytes at `address`.
    ///
    /// # Errors
    /// `EFAULT` where the process could not read.
    pub fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let length = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(buffer.len() - done);
            let (start, area, frame) = self.reach(at, false)?;
            self.read_frame(at, start, &area, frame, &mut buffer[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// Writes bytes at `address`.
    ///
    /// # Errors
    /// `EFAULT` where the process could not write; what precedes that is written.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let length = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(bytes.len() - done);
            let (start, area, frame) = self.reach(at, true)?;
            let part = &bytes[done..done + length];
            match &area.source {
                Source::SharedFile(file, offset) => file.write(offset + (at - start), part)?,
                _ => self.write_frame(frame, at % PAGE_SIZE, part),
            }
            done += length;
        }
        Ok(())
    }

    /// Reads an array of bytes.
    pub fn array<const N: usize>(&mut self, address: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a `u64`.
    pub fn word(&mut self, address: u64) -> Result<u64> {
        self.array(address).map(u64::from_le_bytes)
    }

    /// Reads a `u32`.
    pub fn half(&mut self, address: u64) -> Result<u32> {
        self.array(address).map(u32::from_le_bytes)
    }

    /// Reads `length` bytes.
    ///
    /// # Errors
    /// `EFAULT` where the process could not read, `ENOMEM` beyond 1 GiB.
    pub fn bytes(&mut self, address: u64, length: u64) -> Result<Vec<u8>> {
        if length > 1 << 30 {
            return Err(Errno::ENOMEM);
        }
        let mut bytes = vec![0; length as usize];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a string up to its terminating zero, which is not part of the result.
    ///
    /// # Errors
    /// `ENAMETOOLONG` where there is no end within `limit` bytes.
    pub fn string(&mut self, address: u64, limit: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < limit {
            let at = address.wrapping_add(text.len() as u64);
            let length = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(256).min(limit - text.len());
            let mut part = [0; 256];
            self.read(at, &mut part[..length])?;
            if let Some(end) = part[..length].iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&part[..end]);
                return Ok(text);
            }
            text.extend_from_slice(&part[..length]);
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Reads a path.
    pub fn path(&mut self, address: u64) -> Result<Vec<u8>> {
        self.string(address, PATH_MAX)
    }

    /// The guest-physical address behind one that is shared with other processes; `None` where it is private.
    pub fn shared_frame(&mut self, address: u64) -> Result<Option<u64>> {
        let (_, area, frame) = self.reach(address, false)?;
        Ok((!area.is_private()).then_some(frame + address % PAGE_SIZE))
    }

    /// The frame behind an address, as an access of the process would reach it, with its area.
    pub(super) fn reach(&mut self, address: u64, write: bool) -> Result<(u64, Area, u64)> {
        if address >= layout::USER_END {
            return Err(Errno::EFAULT);
        }
        // At most: bring the page in, then copy it.
        for _ in 0..3 {
            if let Some((start, area)) = find(&self.areas, address) {
                let allowed = if write { area.protection.write } else { area.protection.any() };
                if !allowed {
                    return Err(Errno::EFAULT);
                }
                if let Some(mapping) = self.space().lookup(self.vm.arena.memory(), page_of(address))
                    && (mapping.rights.write || !write)
                {
                    return Ok((start, area.clone(), mapping.physical));
                }
            }
            match self.fault(address) {
                Ok(Resolution::Changed) => {}
                Ok(Resolution::Nothing) => return Err(Errno::EFAULT),
                Err(failure) => {
                    self.exhausted |= failure == Failure::NoMemory;
                    return Err(Errno::EFAULT);
                }
            }
        }
        Err(Errno::EFAULT)
    }

    /// Reads within the page at `at` from the frame that holds it; a window's page is read from its file, since it may
    /// vanish.
    pub(super) fn read_frame(&self, at: u64, start: u64, area: &Area, frame: u64, buffer: &mut [u8]) -> Result<()> {
        if let Source::File(file, offset) | Source::SharedFile(file, offset) = &area.source
            && self.vm.is_window(frame)
        {
            return file.read(offset + (at - start), buffer);
        }
        let at = GuestAddress(frame + at % PAGE_SIZE);
        self.vm.arena.memory().read_slice(buffer, at).map_err(|_| Errno::EFAULT)
    }

    /// Writes into a frame that is not a window's.
    pub(super) fn write_frame(&self, frame: u64, offset: u64, bytes: &[u8]) {
        let at = GuestAddress(frame + offset);
        self.vm.arena.memory().write_slice(bytes, at).expect("frames lie within the arena");
    }
}
