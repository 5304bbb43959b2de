//! Descriptor table and page tables of the first vCPU.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;
use super::layout::{GDT, PAGE_TABLES};

/// Selector of the flat 64-bit code segment; the boot protocol asks for 0x10.
pub const GDT_CODE_64: u16 = 0x10;
/// Selector of the flat data segment; the boot protocol asks for 0x18.
pub const GDT_DATA: u16 = 0x18;
/// Null, unused, code, data: base 0, limit 4 GiB, present, accessed; code executable in long mode, data writable.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Length of the table minus one, as `lgdt` wants it.
pub const GDT_LIMIT: u16 = size_of_val(&DESCRIPTORS) as u16 - 1;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const PAGE_SIZE_2M: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Writes the descriptor table.
pub fn write_gdt(memory: &GuestMemoryMmap) -> Result<(), Error> {
    write(memory, &DESCRIPTORS, GDT)
}

/// Maps the first GiB to itself with pages of 2 MiB.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let (pml4, pdpt, pd) = (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    write(memory, &[pdpt | PRESENT | WRITABLE], pml4)?;
    write(memory, &[pd | PRESENT | WRITABLE], pdpt)?;
    let entries: Vec<u64> = (0..ENTRIES).map(|page| page << 21 | PRESENT | WRITABLE | PAGE_SIZE_2M).collect();
    write(memory, &entries, pd)
}

fn write(memory: &GuestMemoryMmap, words: &[u64], address: u64) -> Result<(), Error> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(address)).map_err(|source| Error::Write { what: "the boot tables", source })
}
