//! A bzImage: a setup header, code that decompresses, and a compressed vmlinux.
//!
//! Where the payload is LZ4, as Debian's is, it is decompressed here, block by block, straight to where the segments of
//! the vmlinux belong: the guest is spared moving the image and building page tables for its decompressor. Any other kernel
//! decompresses itself, entered by the 64-bit protocol.

use std::fs::File;
use std::io::Write;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::HIGH_MEMORY;
use super::{Entry, Error, Kernel, Protocol, elf, read_exact_at};

/// Where the setup header begins in the file.
const HEADER: u64 = 0x1f1;
/// `HdrS`.
const MAGIC: u32 = 0x5372_6448;
/// The first protocol with `xloadflags` (Linux 3.8).
const VERSION: u16 = 0x020c;
/// `XLF_KERNEL_64`: there is a 64-bit entry point, at 0x200 of the loaded code.
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// LZ4's legacy frame, the one the kernel is packed with: a magic number, then blocks of at most 8 MiB with their
/// compressed sizes before them (lz4's `doc/lz4_Frame_format.md`).
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;
/// What a block can grow to if it does not compress.
const LZ4_COMPRESSED_MAX: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;
/// The kernel's build appends the uncompressed size to the payload.
const SIZE_WORD: u64 = 4;

/// Whether `file` has a setup header.
pub fn is_one(file: &File) -> Result<bool, Error> {
    match read_header(file) {
        Ok(header) => Ok(header.header == MAGIC),
        Err(Error::Truncated { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_header(file: &File) -> Result<setup_header, Error> {
    let mut header = setup_header::default();
    read_exact_at(file, header.as_mut_slice(), HEADER)?;
    Ok(header)
}

/// Loads the bzImage `file` into memory, of which there are `low` bytes below 4 GiB.
pub fn load(memory: &GuestMemoryMmap, low: u64, file: &File, protocol: Option<Protocol>) -> Result<Kernel, Error> {
    let header = read_header(file)?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < VERSION || flags & KERNEL_64 == 0 {
        return Err(Error::BzImage(format!("it has no 64-bit entry point (boot protocol {version:#x})")));
    }
    let payload = Payload::of(&header);
    if payload.is_lz4(file)? {
        let mut kernel = payload.unpack(memory, low, file, protocol)?;
        kernel.end = kernel.end.max(header.pref_address.saturating_add(u64::from(header.init_size)).min(low));
        kernel.header = header;
        return Ok(kernel);
    }
    if protocol == Some(Protocol::Pvh) {
        return Err(Error::NoPvh);
    }
    load_packed(memory, low, file, header)
}

/// Loads the code that decompresses, payload and all; the guest runs it.
fn load_packed(memory: &GuestMemoryMmap, low: u64, file: &File, header: setup_header) -> Result<Kernel, Error> {
    let code = code_offset(&header);
    let (start, length) = (header.pref_address, u64::from(header.syssize) * 16);
    let end = start.saturating_add(u64::from(header.init_size).max(length));
    if start < HIGH_MEMORY || end > low {
        return Err(Error::KernelTooBig { start, end, memory: low });
    }
    let have = file.metadata().map_err(|source| Error::Read { offset: 0, source })?.len();
    if code + length > have {
        return Err(Error::Truncated { wanted: code + length, have });
    }
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    while done < length {
        let part = (length - done).min(buffer.len() as u64) as usize;
        read_exact_at(file, &mut buffer[..part], code + done)?;
        memory
            .write_slice(&buffer[..part], GuestAddress(start + done))
            .map_err(|source| Error::Write { what: "the kernel", source })?;
        done += part as u64;
    }
    Ok(Kernel { entry: Entry { protocol: Protocol::Linux64, address: start + ENTRY_64 }, end, header })
}

/// Where the code begins in the file, behind boot sector and setup.
fn code_offset(header: &setup_header) -> u64 {
    (u64::from(header.setup_sects.max(1)) + 1) * SECTOR
}

/// Where the compressed vmlinux is in the file.
struct Payload {
    offset: u64,
    length: u64,
}

impl Payload {
    fn of(header: &setup_header) -> Self {
        let offset = code_offset(header) + u64::from(header.payload_offset);
        Self { offset, length: u64::from(header.payload_length) }
    }

    fn is_lz4(&self, file: &File) -> Result<bool, Error> {
        let mut magic = [0; LZ4_MAGIC.len()];
        read_exact_at(file, &mut magic, self.offset)?;
        Ok(magic == LZ4_MAGIC)
    }

    fn unpack(
        &self,
        memory: &GuestMemoryMmap,
        low: u64,
        file: &File,
        protocol: Option<Protocol>,
    ) -> Result<Kernel, Error> {
        let mut plan: Option<elf::Plan> = None;
        let unpacked = self.each_block(file, |at, block| {
            let plan = match &mut plan {
                Some(plan) => plan,
                None => plan.insert(elf::Plan::parse(block, low)?),
            };
            plan.place(memory, at, block)
        })?;
        plan.ok_or_else(|| broken("is empty"))?.finish(memory, unpacked, protocol)
    }

    /// Decompresses block by block, tells where each belongs in the vmlinux, and gives how long that is.
    fn each_block(&self, file: &File, mut take: impl FnMut(u64, &[u8]) -> Result<(), Error>) -> Result<u64, Error> {
        // Both are large enough to be mappings of their own, which dropping them gives back.
        let (mut packed, mut block) = (Vec::new(), vec![0; LZ4_BLOCK]);
        let (mut at, mut unpacked) = (LZ4_MAGIC.len() as u64, 0);
        while at + SIZE_WORD < self.length {
            let mut size = [0; 4];
            read_exact_at(file, &mut size, self.offset + at)?;
            let size = u32::from_le_bytes(size) as usize;
            if size > LZ4_COMPRESSED_MAX || at + SIZE_WORD + size as u64 > self.length {
                return Err(broken("has a block that ends beyond it"));
            }
            packed.resize(size, 0);
            read_exact_at(file, &mut packed, self.offset + at + SIZE_WORD)?;
            let length = lz4_flex::block::decompress_into(&packed, &mut block).map_err(|_| broken("is damaged"))?;
            take(unpacked, &block[..length])?;
            unpacked += length as u64;
            at += SIZE_WORD + size as u64;
        }
        Ok(unpacked)
    }
}

fn broken(why: &str) -> Error {
    Error::BzImage(format!("its LZ4 payload {why}"))
}

/// Whether the vmlinux in the bzImage `file` is packed with LZ4.
pub fn is_lz4(file: &File) -> Result<bool, Error> {
    Payload::of(&read_header(file)?).is_lz4(file)
}

/// Writes the vmlinux that is packed in the bzImage `file`, if it is with LZ4.
pub fn write_vmlinux(file: &File, to: &mut impl Write) -> Result<(), Error> {
    let payload = Payload::of(&read_header(file)?);
    if !payload.is_lz4(file)? {
        return Err(Error::BzImage("its payload is packed with something else than LZ4".to_owned()));
    }
    payload.each_block(file, |_, block| to.write_all(block).map_err(Error::Unpack)).map(drop)
}
