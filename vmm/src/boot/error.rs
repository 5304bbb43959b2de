//! Why a guest's kernel cannot be started.

use std::io;

use crate::machine::memory;

/// Errors of [`super::load`]; each says which part of the input is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither an ELF file nor a bzImage.
    #[error("the kernel is neither an ELF vmlinux nor a bzImage (it begins with {0:02x?}); give one with --kernel")]
    NotAKernel(Vec<u8>),
    /// It cannot be read.
    #[error("reading the kernel at offset {offset:#x}: {source}")]
    Read {
        /// Offset in the file.
        offset: u64,
        /// What `pread(2)` said.
        source: io::Error,
    },
    /// It ends too soon.
    #[error("the kernel is truncated: its headers tell of {wanted} bytes and the file has {have}")]
    Truncated {
        /// Bytes the headers speak of.
        wanted: u64,
        /// Size of the file.
        have: u64,
    },
    /// An ELF file of another kind.
    #[error("the kernel is an ELF file, but {0}")]
    Elf(&'static str),
    /// A bzImage that cannot be used.
    #[error("the kernel is a bzImage, but {0}")]
    BzImage(String),
    /// Its vmlinux cannot be passed on.
    #[error("copying the kernel's vmlinux: {0}")]
    Unpack(io::Error),
    /// The asked for protocol is not offered.
    #[error("the kernel has no PVH entry note (CONFIG_PVH); boot it with the 64-bit protocol")]
    NoPvh,
    /// It does not fit.
    #[error("the kernel wants memory from {start:#x} to {end:#x}, the guest has it up to {memory:#x}; raise --memory")]
    KernelTooBig {
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// End of the guest's memory below 4 GiB.
        memory: u64,
    },
    /// The initramfs does not fit behind the kernel.
    #[error(
        "an initramfs of {size} bytes does not fit between the kernel, up to {kernel_end:#x}, and {memory:#x}; raise --memory"
    )]
    InitramfsTooBig {
        /// Its size.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// End of the guest's memory below 4 GiB.
        memory: u64,
    },
    /// The initramfs cannot be read.
    #[error("reading the initramfs: {0}")]
    Initramfs(io::Error),
    /// The command line is too long or has a zero in it.
    #[error("the kernel's command line {0}")]
    CommandLine(String),
    /// The ACPI tables outgrow their room.
    #[error("ACPI tables of {0} bytes do not fit the BIOS area")]
    Tables(usize),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Access to guest memory.
    #[error("writing {what} into guest memory: {source}")]
    Write {
        /// What was written.
        what: &'static str,
        /// What vm-memory said.
        source: vm_memory::GuestMemoryError,
    },
}
