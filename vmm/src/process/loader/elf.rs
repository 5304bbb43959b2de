//! The ELF header and program headers of a 64-bit x86 program (System V ABI, AMD64 supplement, chapters 4 and 5).
//!
//! The file comes from the image: nothing in it is believed before it was checked.

#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::uio::pread;

use crate::paging::entry::PAGE_SIZE;
use crate::process::Result;
use crate::process::memory::PATH_MAX;
use crate::process::memory::area::Protection;
use crate::process::plain::{half, short, word};
use crate::process::vm::layout;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers: Linux takes 64 KiB of them.
const MOST_HEADERS: u16 = 1024;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;

/// A segment to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it stands, relative to the base.
    pub address: u64,
    /// Where its bytes stand in the file; congruent to the address modulo the page size.
    pub offset: u64,
    /// How many bytes come from the file.
    pub file_size: u64,
    /// How many bytes it takes in memory, at least as many.
    pub memory_size: u64,
    /// What may be done with it.
    pub protection: Protection,
}

/// What a program says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where to begin, relative to the base.
    pub entry: u64,
    /// It may be loaded anywhere (`ET_DYN`).
    pub anywhere: bool,
    /// The segments, lowest first and apart from each other.
    pub segments: Vec<Segment>,
    /// The path of the interpreter.
    pub interpreter: Option<Vec<u8>>,
    /// How many program headers there are.
    pub header_count: u16,
    headers_offset: u64,
    headers: Option<u64>,
}

impl Header {
    /// Reads and checks a program's headers.
    ///
    /// # Errors
    /// `ENOEXEC` where it is no program for this processor, or its segments make no sense.
    pub fn read(file: &OwnedFd) -> Result<Self> {
        let at = |offset: u64, length: usize| {
            let offset = i64::try_from(offset).map_err(|_| Errno::ENOEXEC)?;
            let mut bytes = vec![0; length];
            match pread(file, &mut bytes, offset)? {
                read if read == length => Ok(bytes),
                _ => Err(Errno::ENOEXEC),
            }
        };
        let header = at(0, HEADER)?;
        let kind = short(&header, 16);
        // Magic number, 64-bit, little-endian.
        let known = header.starts_with(b"\x7fELF\x02\x01") && short(&header, 18) == EM_X86_64;
        let header_count = short(&header, 56);
        if !known
            || !matches!(kind, ET_EXEC | ET_DYN)
            || usize::from(short(&header, 54)) != PROGRAM_HEADER
            || !(1..=MOST_HEADERS).contains(&header_count)
        {
            return Err(Errno::ENOEXEC);
        }
        let headers_offset = word(&header, 32);
        let table = at(headers_offset, usize::from(header_count) * PROGRAM_HEADER)?;
        let mut found = Self {
            entry: word(&header, 24),
            anywhere: kind == ET_DYN,
            segments: Vec::new(),
            interpreter: None,
            header_count,
            headers_offset,
            headers: None,
        };
        for entry in table.chunks_exact(PROGRAM_HEADER) {
            let (offset, address, file_size) = (word(entry, 8), word(entry, 16), word(entry, 32));
            match half(entry, 0) {
                PT_LOAD => found.segments.extend(segment(entry)?),
                PT_INTERP => {
                    let length = usize::try_from(file_size).ok().filter(|length| (2..=PATH_MAX).contains(length));
                    let mut path = at(offset, length.ok_or(Errno::ENOEXEC)?)?;
                    if path.pop() != Some(0) || path.contains(&0) {
                        return Err(Errno::ENOEXEC);
                    }
                    found.interpreter = Some(path);
                }
                PT_PHDR => found.headers = Some(address),
                _ => {}
            }
        }
        let apart = found.segments.windows(2).all(|pair| pair[0].address + pair[0].memory_size <= pair[1].address);
        if found.segments.is_empty() || !apart {
            return Err(Errno::ENOEXEC);
        }
        Ok(found)
    }

    /// The address of the program headers, relative to the base.
    pub fn headers_address(&self) -> u64 {
        let holds =
            |segment: &&Segment| (segment.offset..segment.offset + segment.file_size).contains(&self.headers_offset);
        self.headers.unwrap_or_else(|| {
            self.segments
                .iter()
                .find(holds)
                .map_or(0, |segment| segment.address + (self.headers_offset - segment.offset))
        })
    }

    /// Bytes from the base to the end of the last segment.
    pub fn span(&self) -> Result {
        self.segments.last().map(|last| last.address + last.memory_size).ok_or(Errno::ENOEXEC)
    }
}

/// A loadable segment; `None` if it is empty.
fn segment(entry: &[u8]) -> Result<Option<Segment>> {
    let (flags, offset, address) = (half(entry, 4), word(entry, 8), word(entry, 16));
    let (file_size, memory_size) = (word(entry, 32), word(entry, 40));
    let protection = Protection { read: flags & 4 != 0, write: flags & 2 != 0, execute: flags & 1 != 0 };
    let fits = |start: u64, length: u64| start.checked_add(length).is_some_and(|end| end < layout::USER_END);
    if memory_size == 0 {
        return Ok(None);
    }
    let congruent = offset % PAGE_SIZE == address % PAGE_SIZE;
    if file_size > memory_size || !fits(address, memory_size) || !fits(offset, file_size) || !congruent {
        return Err(Errno::ENOEXEC);
    }
    Ok(Some(Segment { address, offset, file_size, memory_size, protection }))
}
