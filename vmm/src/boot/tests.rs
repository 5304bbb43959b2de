use std::io::{Seek, Write};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::memory;

const MEMORY: u64 = 64 << 20;
/// Where the test's kernel lies in memory, and in its file.
const ADDRESS: u64 = 0x100_0000;
const OFFSET: u64 = 0x1000;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// A vmlinux with one segment that holds `content`, and no notes.
fn vmlinux(content: &[u8]) -> Vec<u8> {
    let header = elf_header::Header {
        identification: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        kind: 2,
        machine: elf_header::X86_64,
        entry: ADDRESS,
        program_headers: 64,
        program_header_size: 56,
        program_header_count: 1,
        ..Default::default()
    };
    let length = content.len() as u64;
    let segment = elf_header::ProgramHeader {
        kind: elf_header::LOAD,
        offset: OFFSET,
        physical_address: ADDRESS,
        file_size: length,
        memory_size: length + 100,
        ..Default::default()
    };
    let mut bytes = [vm_memory::ByteValued::as_slice(&header), vm_memory::ByteValued::as_slice(&segment)].concat();
    bytes.resize(OFFSET as usize, 0);
    bytes.extend(content);
    bytes
}

/// A bzImage with `payload`, which begins right behind one sector of setup code.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let header = setup_header {
        setup_sects: 1,
        header: 0x5372_6448,
        version: 0x20f,
        xloadflags: 1,
        syssize: payload.len().div_ceil(16) as u32,
        pref_address: ADDRESS,
        init_size: 1 << 20,
        payload_length: payload.len() as u32,
        ..Default::default()
    };
    let mut bytes = vec![0; 0x1f1];
    bytes.extend(vm_memory::ByteValued::as_slice(&header));
    bytes.resize(1024, 0);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes
}

/// `image` as LZ4's legacy frame, in blocks of `block` bytes.
fn packed(image: &[u8], block: usize) -> Vec<u8> {
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in image.chunks(block) {
        // Literals alone: a token, lengths beyond 15 in steps of 255, the bytes.
        let mut packed = vec![(chunk.len().min(15) as u8) << 4];
        if let Some(mut more) = chunk.len().checked_sub(15) {
            while more >= 255 {
                packed.push(255);
                more -= 255;
            }
            packed.push(more as u8);
        }
        packed.extend(chunk);
        payload.extend((packed.len() as u32).to_le_bytes());
        payload.extend(packed);
    }
    payload.extend((image.len() as u32).to_le_bytes());
    payload
}

fn boot(kernel: &[u8], initramfs: Option<&[u8]>, line: &str) -> Result<(Entry, GuestMemoryMmap), Error> {
    let memory = memory::map(MEMORY)?;
    let (kernel, initramfs) = (file(kernel), initramfs.map(file));
    let images = Images { kernel: &kernel, initramfs: initramfs.as_ref(), protocol: None, command_line: line };
    let platform = acpi::Platform { vcpus: 2, serial: true, devices: Vec::new() };
    Ok((load(&memory, MEMORY, &images, &platform)?, memory))
}

fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// Two pages and a bit: pages that are mapped, and an end that is copied.
fn content() -> Vec<u8> {
    (0..9000u32).map(|number| (number % 251) as u8).collect()
}

#[test]
fn a_vmlinux_lies_where_its_headers_say_and_zeros_follow() {
    let (entry, memory) = boot(&vmlinux(&content()), None, "").unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: ADDRESS });
    assert_eq!(read(&memory, ADDRESS, 9000), content());
    assert_eq!(read(&memory, ADDRESS + 9000, 100), [0; 100]);
}

#[test]
fn a_bzimage_is_unpacked_to_the_same() {
    for block in [100, 8000, 1 << 20] {
        let (entry, memory) = boot(&bzimage(&packed(&vmlinux(&content()), block.max(4096))), None, "").unwrap();
        assert_eq!(entry.address, ADDRESS);
        assert_eq!(read(&memory, ADDRESS, 9000), content());
    }
}

#[test]
fn a_vmlinux_can_be_had_of_either() {
    let vmlinux = vmlinux(&content());
    for kernel in [vmlinux.clone(), bzimage(&packed(&vmlinux, 4096))] {
        let mut written = Vec::new();
        write_vmlinux(&mut file(&kernel), &mut written).unwrap();
        assert_eq!(written, vmlinux);
    }
    for (kernel, reason) in
        [(bzimage(b"\x1f\x8b and so on, as gzip"), "something else than LZ4"), (b"no".into(), "neither")]
    {
        let error = write_vmlinux(&mut file(&kernel), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_bzimage_packed_otherwise_is_left_to_unpack_itself() {
    let (entry, memory) = boot(&bzimage(b"\x1f\x8b and so on, as gzip"), None, "").unwrap();
    assert_eq!(entry.address, ADDRESS + 0x200);
    assert_eq!(read(&memory, ADDRESS, 2), b"\x1f\x8b");
}

#[test]
fn the_zero_page_tells_of_memory_initramfs_and_command_line() {
    let (_, memory) = boot(&vmlinux(&content()), Some(&[7; 5000]), "quiet").unwrap();
    let mut page = linux_loader::loader::bootparam::boot_params::default();
    vm_memory::ByteValued::as_mut_slice(&mut page).copy_from_slice(&read(&memory, layout::ZERO_PAGE, 4096));
    let header = page.hdr;
    assert_eq!({ header.ramdisk_size }, 5000);
    assert_eq!(read(&memory, u64::from(header.ramdisk_image), 5000), [7; 5000]);
    assert_eq!(read(&memory, u64::from(header.cmd_line_ptr), 6), b"quiet\0");
    let entries = &page.e820_table[..usize::from(page.e820_entries)];
    assert_eq!(
        entries.iter().map(|entry| entry.size).sum::<u64>(),
        MEMORY - (layout::HIGH_MEMORY - layout::LOW_MEMORY_END)
    );
    assert_eq!(read(&memory, page.acpi_rsdp_addr, 8), b"RSD PTR ");
}

#[test]
fn acpi_tables_add_up() {
    let (_, memory) = boot(&vmlinux(&content()), None, "").unwrap();
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let root = read(&memory, layout::ACPI, 36);
    assert_eq!((sum(&root), sum(&root[..20])), (0, 0));
    let table = |address: u64| {
        let length = u32::from_le_bytes(read(&memory, address + 4, 4).try_into().unwrap());
        read(&memory, address, length as usize)
    };
    let xsdt = table(u64::from_le_bytes(root[24..32].try_into().unwrap()));
    assert_eq!(sum(&xsdt), 0);
    let tables: Vec<_> =
        xsdt[36..].chunks_exact(8).map(|at| table(u64::from_le_bytes(at.try_into().unwrap()))).collect();
    assert_eq!(tables.iter().map(|table| &table[..4]).collect::<Vec<_>>(), [b"FACP", b"APIC"]);
    assert!(tables.iter().all(|table| sum(table) == 0));
    assert_eq!(sum(&table(u64::from_le_bytes(tables[0][140..148].try_into().unwrap()))), 0);
}

#[test]
fn what_does_not_fit_or_is_broken_says_so() {
    let kernel = vmlinux(&content());
    let whole = bzimage(&packed(&kernel, 1 << 20));
    let mut outside = kernel.clone();
    outside[24..32].copy_from_slice(&(ADDRESS + (1 << 20)).to_le_bytes());
    let mut damaged = whole.clone();
    damaged[1028..1032].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut old = whole.clone();
    old[0x206] = 0;
    let mut low = kernel.clone();
    low[64 + 24..64 + 32].copy_from_slice(&0u64.to_le_bytes());
    let cases: [(&[u8], &str); 7] = [
        (&kernel[..2000], "truncated"),
        (&outside, "entry point"),
        (&low, "raise --memory"),
        (&whole[..3000], "truncated"),
        (&damaged, "LZ4 payload has a block that ends beyond it"),
        (&old, "no 64-bit entry point"),
        (&bzimage(&packed(b"", 1)), "LZ4 payload is empty"),
    ];
    for (kernel, message) in cases {
        let error = boot(kernel, None, "").unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
    let initramfs = vec![0; MEMORY as usize];
    assert!(matches!(boot(&kernel, Some(&initramfs), ""), Err(Error::InitramfsTooBig { .. })));
    assert!(matches!(boot(&kernel, Some(b""), ""), Err(Error::Initramfs(_))));
    assert!(matches!(boot(&kernel, None, &"x".repeat(2048)), Err(Error::CommandLine(_))));
    assert!(matches!(boot(&kernel, None, "a\0b"), Err(Error::CommandLine(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a kernel's headers are changed to: an answer, no panic, nothing outside the guest's memory.
    #[test]
    fn wild_headers_are_refused_or_harmless(
        changes in prop::collection::vec((0usize..1200, any::<u8>()), 1..8),
        compressed in any::<bool>(),
    ) {
        let mut kernel = vmlinux(&content());
        if compressed {
            kernel = bzimage(&packed(&kernel, 4096));
        }
        for (place, value) in changes {
            kernel[place] = value;
        }
        let _ = boot(&kernel, None, "");
    }
}
