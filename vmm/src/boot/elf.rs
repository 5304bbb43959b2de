//! An ELF vmlinux: its segments go where their physical addresses say.

use std::fs::File;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::elf_header::{CLASS_64_LITTLE_ENDIAN, EXECUTABLE, Header, LOAD, NOTE, ProgramHeader, X86_64};
use super::layout::HIGH_MEMORY;
use super::{Entry, Error, Kernel, Protocol, read_exact_at};
use crate::machine::memory::{self, PAGE};

/// Headers must lie in the first bytes of the file: they always do, and it bounds what is read before it is believed.
pub const HEADERS: usize = 4096;
/// Bounds how far the search for the PVH note goes; Linux has about half a KiB of notes.
const NOTES_MAX: u64 = 64 << 10;
/// Name and type of the note with PVH's entry point, `xen/include/public/elfnote.h`.
const XEN: &[u8] = b"Xen\0";
const PHYS32_ENTRY: u32 = 18;

/// One part of the file that becomes part of the memory.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

/// What the headers of a vmlinux say, checked against the memory there is.
#[derive(Debug)]
pub struct Plan {
    entry: u64,
    segments: Vec<Segment>,
    notes: Option<(u64, u64)>,
}

impl Plan {
    /// Reads the headers, which `start` (at most [`HEADERS`] bytes of the file are looked at) must contain.
    pub fn parse(start: &[u8], low: u64) -> Result<Self, Error> {
        let start = &start[..start.len().min(HEADERS)];
        let truncated = |wanted| Error::Truncated { wanted, have: start.len() as u64 };
        let size = size_of::<Header>();
        let bytes = start.get(..size).ok_or_else(|| truncated(size as u64))?;
        let mut header = Header::default();
        header.as_mut_slice().copy_from_slice(bytes);
        if header.identification[4..6] != CLASS_64_LITTLE_ENDIAN || header.machine != X86_64 {
            return Err(Error::Elf("not one for x86-64"));
        }
        if !EXECUTABLE.contains(&header.kind) {
            return Err(Error::Elf("not an executable"));
        }
        let size = size_of::<ProgramHeader>();
        if usize::from(header.program_header_size) != size {
            return Err(Error::Elf("its program headers have an unknown size"));
        }
        let table = usize::from(header.program_header_count) * size;
        let table = usize::try_from(header.program_headers)
            .ok()
            .and_then(|first| start.get(first..first.checked_add(table)?))
            .ok_or(Error::Elf("its program headers are not at its beginning"))?;
        let mut plan = Self { entry: header.entry, segments: Vec::new(), notes: None };
        for bytes in table.chunks_exact(size) {
            let mut header = ProgramHeader::default();
            header.as_mut_slice().copy_from_slice(bytes);
            plan.add(&header, low)?;
        }
        if !plan.segments.iter().any(|segment| (segment.address..segment.end()).contains(&plan.entry)) {
            return Err(Error::Elf("its entry point is in none of its segments"));
        }
        Ok(plan)
    }

    fn add(&mut self, header: &ProgramHeader, low: u64) -> Result<(), Error> {
        match header.kind {
            LOAD if header.memory_size > 0 => {
                let (start, in_memory) = (header.physical_address, header.memory_size);
                let end = start.checked_add(in_memory).ok_or(Error::Elf("a segment wraps round"))?;
                if header.file_size > in_memory || header.offset.checked_add(header.file_size).is_none() {
                    return Err(Error::Elf("a segment is longer in the file than in memory"));
                }
                if start < HIGH_MEMORY || end > low {
                    return Err(Error::KernelTooBig { start, end, memory: low });
                }
                if self.segments.iter().any(|other| start < other.end() && other.address < end) {
                    return Err(Error::Elf("two segments overlap"));
                }
                let segment = Segment { offset: header.offset, address: start, in_file: header.file_size, in_memory };
                self.segments.push(segment);
            }
            NOTE => self.notes = Some((header.physical_address, header.file_size.min(NOTES_MAX))),
            _ => {}
        }
        Ok(())
    }

    /// How long the file must be.
    fn file_end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.offset + segment.in_file).max().unwrap_or(0)
    }

    /// Copies the parts of `chunk`, which is found at `offset` of the file, that belong to segments.
    pub fn place(&self, memory: &GuestMemoryMmap, offset: u64, chunk: &[u8]) -> Result<(), Error> {
        let end = offset + chunk.len() as u64;
        for segment in &self.segments {
            let (from, to) = (segment.offset.max(offset), (segment.offset + segment.in_file).min(end));
            if from < to {
                let address = GuestAddress(segment.address + (from - segment.offset));
                memory
                    .write_slice(&chunk[(from - offset) as usize..(to - offset) as usize], address)
                    .map_err(|source| Error::Write { what: "the kernel", source })?;
            }
        }
        Ok(())
    }

    /// The kernel, once `length` bytes of file have been placed.
    pub fn finish(self, memory: &GuestMemoryMmap, length: u64, protocol: Option<Protocol>) -> Result<Kernel, Error> {
        if length < self.file_end() {
            return Err(Error::Truncated { wanted: self.file_end(), have: length });
        }
        let protocol = protocol.unwrap_or(Protocol::Linux64);
        let address = match protocol {
            Protocol::Linux64 => self.entry,
            Protocol::Pvh => self.pvh_entry(memory).ok_or(Error::NoPvh)?,
        };
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(0);
        Ok(Kernel { entry: Entry { protocol, address }, end, header: setup_header::default() })
    }

    /// Looks for the PVH note in the loaded notes.
    fn pvh_entry(&self, memory: &GuestMemoryMmap) -> Option<u64> {
        let (address, length) = self.notes?;
        let mut notes = vec![0; length as usize];
        memory.read_slice(&mut notes, GuestAddress(address)).ok()?;
        let mut rest = notes.as_slice();
        loop {
            let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
            let (name, description, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
            let body = 12 + name.checked_next_multiple_of(4)?;
            if kind == PHYS32_ENTRY && rest.get(12..12 + name)? == XEN {
                let mut entry = [0; 8];
                let bytes = rest.get(body..body.checked_add(description.min(8))?)?;
                entry[..bytes.len()].copy_from_slice(bytes);
                return Some(u64::from(u64::from_le_bytes(entry) as u32));
            }
            rest = rest.get(body.checked_add(description.checked_next_multiple_of(4)?)?..)?;
        }
    }
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + self.in_memory
    }

    /// Maps the whole pages of the segment and copies what is left at both ends.
    fn load(&self, memory: &GuestMemoryMmap, file: &File) -> Result<(), Error> {
        let (start, end) = (self.address.next_multiple_of(PAGE), (self.address + self.in_file) & !(PAGE - 1));
        let congruent = self.offset % PAGE == self.address % PAGE;
        if !congruent || start >= end {
            return self.copy(memory, file, self.address, self.address + self.in_file);
        }
        self.copy(memory, file, self.address, start)?;
        memory::map_file(memory, file, self.offset + (start - self.address), start, end - start)?;
        self.copy(memory, file, end, self.address + self.in_file)
    }

    /// Copies the segment's addresses `from..to`.
    fn copy(&self, memory: &GuestMemoryMmap, file: &File, from: u64, to: u64) -> Result<(), Error> {
        let mut buffer = [0; PAGE as usize];
        let mut address = from;
        while address < to {
            let part = &mut buffer[..(to - address).min(PAGE) as usize];
            read_exact_at(file, part, self.offset + (address - self.address))?;
            memory
                .write_slice(part, GuestAddress(address))
                .map_err(|source| Error::Write { what: "the kernel", source })?;
            address += part.len() as u64;
        }
        Ok(())
    }
}

/// Loads the vmlinux `file` into memory, of which there are `low` bytes below 4 GiB.
pub fn load(memory: &GuestMemoryMmap, low: u64, file: &File, protocol: Option<Protocol>) -> Result<Kernel, Error> {
    let length = file.metadata().map_err(|source| Error::Read { offset: 0, source })?.len();
    let mut start = [0; HEADERS];
    let start = &mut start[..length.min(HEADERS as u64) as usize];
    read_exact_at(file, start, 0)?;
    let plan = Plan::parse(start, low)?;
    if length < plan.file_end() {
        return Err(Error::Truncated { wanted: plan.file_end(), have: length });
    }
    for segment in &plan.segments {
        segment.load(memory, file)?;
    }
    plan.finish(memory, length, protocol)
}
