//! The headers of a 64-bit ELF file (System V ABI, chapter 4), as they lie in it.

use vm_memory::ByteValued;

/// `ELFCLASS64`, `ELFDATA2LSB`: bytes 4 and 5 of the identification.
pub const CLASS_64_LITTLE_ENDIAN: [u8; 2] = [2, 1];
/// `EM_X86_64`.
pub const X86_64: u16 = 62;
/// `ET_EXEC` and `ET_DYN`.
pub const EXECUTABLE: [u16; 2] = [2, 3];
/// `PT_LOAD`.
pub const LOAD: u32 = 1;
/// `PT_NOTE`.
pub const NOTE: u32 = 4;

/// `Elf64_Ehdr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Header {
    pub identification: [u8; 16],
    pub kind: u16,
    pub machine: u16,
    pub version: u32,
    pub entry: u64,
    pub program_headers: u64,
    pub section_headers: u64,
    pub flags: u32,
    pub header_size: u16,
    pub program_header_size: u16,
    pub program_header_count: u16,
    pub section_header_size: u16,
    pub section_header_count: u16,
    pub section_names: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ProgramHeader {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub alignment: u64,
}

// SAFETY: integers alone, without padding; any bytes are a valid value.
unsafe impl ByteValued for Header {}
// SAFETY: as above.
unsafe impl ByteValued for ProgramHeader {}
