//! What the kernel is told about the machine: the zero page, or PVH's start info.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{COMMAND_LINE, MEMORY_MAP, MODULES, START_INFO, ZERO_PAGE, usable};
use super::{Error, Extent};

/// Usable memory, in both memory maps.
const E820_RAM: u32 = 1;
/// `HdrS` and 0xaa55: a kernel from an ELF file gets a setup header of ours.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;
/// PVH's `XEN_HVM_START_MAGIC_VALUE`, and the version with a memory map.
const START_MAGIC: u32 = 0x336e_c578;
const START_VERSION: u32 = 1;

/// What both protocols tell.
pub struct Parameters<'a> {
    /// Bytes of guest memory.
    pub size: u64,
    /// Address of ACPI's root pointer.
    pub rsdp: u64,
    /// Where the initramfs is.
    pub initramfs: Option<Extent>,
    /// Already in guest memory; its length counts here.
    pub command_line: &'a str,
}

impl Parameters<'_> {
    /// Writes `struct boot_params` with `header`, a bzImage's or an empty one.
    pub fn write_zero_page(&self, memory: &GuestMemoryMmap, header: &mut setup_header) -> Result<(), Error> {
        header.header = HEADER_MAGIC;
        header.boot_flag = BOOT_FLAG;
        header.type_of_loader = LOADER_UNDEFINED;
        header.kernel_alignment = KERNEL_ALIGNMENT;
        header.cmd_line_ptr = COMMAND_LINE as u32;
        header.cmdline_size = self.command_line.len() as u32;
        if let Some(initramfs) = self.initramfs {
            header.ramdisk_image = initramfs.start as u32;
            header.ramdisk_size = initramfs.length as u32;
        }
        let mut params = boot_params { hdr: *header, acpi_rsdp_addr: self.rsdp, ..Default::default() };
        for (entry, extent) in params.e820_table.iter_mut().zip(usable(self.size)) {
            *entry = boot_e820_entry { addr: extent.start, size: extent.length, r#type: E820_RAM };
            params.e820_entries += 1;
        }
        write(memory, &params, ZERO_PAGE)
    }

    /// Writes `hvm_start_info` and what it points to.
    pub fn write_start_info(&self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let mut info = hvm_start_info {
            magic: START_MAGIC,
            version: START_VERSION,
            cmdline_paddr: COMMAND_LINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: MEMORY_MAP,
            ..Default::default()
        };
        if let Some(initramfs) = self.initramfs {
            let module = hvm_modlist_entry { paddr: initramfs.start, size: initramfs.length, ..Default::default() };
            write(memory, &module, MODULES)?;
            info.modlist_paddr = MODULES;
            info.nr_modules = 1;
        }
        for extent in usable(self.size) {
            let entry =
                hvm_memmap_table_entry { addr: extent.start, size: extent.length, type_: E820_RAM, reserved: 0 };
            let index = u64::from(info.memmap_entries);
            write(memory, &entry, MEMORY_MAP + index * size_of::<hvm_memmap_table_entry>() as u64)?;
            info.memmap_entries += 1;
        }
        write(memory, &info, START_INFO)
    }
}

fn write<T: ByteValued>(memory: &GuestMemoryMmap, value: &T, address: u64) -> Result<(), Error> {
    memory
        .write_slice(value.as_slice(), GuestAddress(address))
        .map_err(|source| Error::Write { what: "the boot parameters", source })
}
