//! From a kernel, an initramfs and a command line to guest memory a vCPU can be let loose on.
//!
//! Two protocols start a kernel. The 64-bit one of Linux (`Documentation/arch/x86/boot.rst`) enters in long mode with a
//! `struct boot_params`; PVH (Xen's `docs/misc/pvh.pandoc`) enters in 32-bit mode with a `hvm_start_info`.

pub mod acpi;
mod bzimage;
pub mod command_line;
mod elf;
mod elf_header;
mod error;
mod initramfs;
pub mod layout;
mod parameters;
mod tables;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

pub use self::error::Error;
pub use self::layout::Extent;
pub use self::tables::{GDT_CODE_64, GDT_DATA, GDT_LIMIT, write_gdt};

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Linux' 64-bit boot protocol.
    Linux64,
    /// PVH: 32-bit protected mode without paging.
    Pvh,
}

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The mode it starts in.
    pub protocol: Protocol,
    /// Guest-physical address of the first instruction.
    pub address: u64,
}

/// A kernel in guest memory.
struct Kernel {
    entry: Entry,
    /// One past the last address it claims before it reads its memory map.
    end: u64,
    /// A bzImage's setup header, which goes into the zero page.
    header: setup_header,
}

/// What is booted.
pub struct Images<'a> {
    /// An ELF vmlinux or a bzImage; a regular file.
    pub kernel: &'a File,
    /// The archive the kernel unpacks as its first root file system.
    pub initramfs: Option<&'a File>,
    /// The protocol; by default the 64-bit one.
    pub protocol: Option<Protocol>,
    /// The whole command line.
    pub command_line: &'a str,
}

/// Puts the kernel, the initramfs and all tables into `memory`, of which the guest has `size` bytes.
pub fn load(memory: &GuestMemoryMmap, size: u64, images: &Images, platform: &acpi::Platform) -> Result<Entry, Error> {
    let low = size.min(layout::GAP);
    let mut kernel = load_kernel(memory, low, images)?;
    let initramfs = images.initramfs.map(|file| initramfs::load(memory, low, kernel.end, file)).transpose()?;
    let rsdp = acpi::write(memory, platform)?;
    command_line::write(memory, images.command_line)?;
    let parameters = parameters::Parameters { size, rsdp, initramfs, command_line: images.command_line };
    match kernel.entry.protocol {
        Protocol::Linux64 => {
            parameters.write_zero_page(memory, &mut kernel.header)?;
            tables::write_gdt(memory)?;
            tables::write_page_tables(memory)?;
        }
        Protocol::Pvh => {
            parameters.write_start_info(memory)?;
            tables::write_gdt(memory)?;
        }
    }
    Ok(kernel.entry)
}

fn load_kernel(memory: &GuestMemoryMmap, low: u64, images: &Images) -> Result<Kernel, Error> {
    let file = images.kernel;
    match Format::of(file)? {
        Format::Elf => elf::load(memory, low, file, images.protocol),
        Format::BzImage => bzimage::load(memory, low, file, images.protocol),
    }
}

/// Writes a kernel as the ELF vmlinux that it is or holds: other VMMs take nothing else.
pub fn write_vmlinux(kernel: &mut File, to: &mut impl Write) -> Result<(), Error> {
    match Format::of(kernel)? {
        Format::Elf => io::copy(kernel, to).map(drop).map_err(Error::Unpack),
        Format::BzImage => bzimage::write_vmlinux(kernel, to),
    }
}

/// Whether a kernel is a bzImage that is packed with LZ4, so that [`write_vmlinux`] has something to do and can.
pub fn is_unpackable(kernel: &File) -> Result<bool, Error> {
    Ok(matches!(Format::of(kernel)?, Format::BzImage) && bzimage::is_lz4(kernel)?)
}

/// What a kernel comes as.
enum Format {
    Elf,
    BzImage,
}

impl Format {
    fn of(file: &File) -> Result<Self, Error> {
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).map_err(|source| Error::Read { offset: 0, source })?;
        if magic == *b"\x7fELF" {
            Ok(Self::Elf)
        } else if bzimage::is_one(file)? {
            Ok(Self::BzImage)
        } else {
            Err(Error::NotAKernel(magic[..read].to_vec()))
        }
    }
}

/// Fills `buffer` from `offset` of the kernel's file on.
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated {
            wanted: offset + buffer.len() as u64,
            have: file.metadata().map_or(0, |file| file.len()),
        },
        _ => Error::Read { offset, source },
    })
}

#[cfg(test)]
mod tests;
