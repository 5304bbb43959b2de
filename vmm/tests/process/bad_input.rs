//! Programs that are none, from outside.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::{guest, root};

const CODE: u64 = 0x40_0000;

/// A loadable segment: flags, offset, address, bytes in the file and in memory.
type Segment = (u32, u64, u64, u64, u64);

const TEXT: Segment = (5, 0, CODE, 0x1000, 0x1000);

/// An ELF file of one page that exits with 7, with other segments and an interpreter if asked for.
fn program(segments: &[Segment], interpreter: Option<&str>) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([CODE + 0x800, 64, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    let headers = segments.len() as u16 + u16::from(interpreter.is_some());
    file.extend([64u16, 56, headers, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let mut header = |kind: u32, (flags, offset, address, in_file, in_memory): Segment| {
        file.extend([kind, flags].iter().flat_map(|half| half.to_le_bytes()));
        let words = [offset, address, address, in_file, in_memory, 0x1000];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    if let Some(path) = interpreter {
        header(3, (4, 0x900, CODE + 0x900, path.len() as u64 + 1, path.len() as u64 + 1));
    }
    for &segment in segments {
        header(1, segment);
    }
    file.resize(0x800, 0);
    // `mov edi, 7; mov eax, 60; syscall`.
    file.extend([0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    file.resize(0x900, 0);
    file.extend(interpreter.unwrap_or_default().bytes());
    file.resize(0x1000, 0);
    file
}

fn run(root: &Path, bytes: &[u8]) -> Option<i32> {
    let path = root.join("program");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    guest(root, &["/program"]).status.code()
}

#[test]
fn what_is_no_program_is_refused() {
    if fs::File::open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let root = root();
    let root = root.path();
    let good = program(&[TEXT], None);
    assert_eq!(run(root, &good), Some(7));
    let changed = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        file
    };
    let cases = [
        ("nothing", Vec::new()),
        ("a short file", good[..40].to_vec()),
        ("32 bits", changed(4, 1)),
        ("the other byte order", changed(5, 2)),
        ("another processor", changed(18, 183)),
        ("an object file", changed(16, 1)),
        ("no headers", changed(56, 0)),
        ("more headers than there is file", changed(57, 0xff)),
        ("headers of another size", changed(54, 32)),
        ("headers behind the end", changed(33, 0xff)),
        ("no segments", program(&[], Some("/lib/nothing"))),
        ("segments over each other", program(&[TEXT, (6, 0, CODE + 0x800, 0x100, 0x100)], None)),
        ("segments out of order", program(&[(6, 0, CODE + 0x2000, 0x100, 0x100), TEXT], None)),
        ("a segment at the end of all", program(&[TEXT, (6, 0, u64::MAX - 0xfff, 0x100, 0x1000)], None)),
        ("a segment of the kernel", program(&[TEXT, (6, 0, 0xffff_8000_0000_0000, 0x100, 0x1000)], None)),
        ("a segment of all memory", program(&[TEXT, (6, 0, CODE + 0x1000, 0x100, u64::MAX / 2)], None)),
        ("more in the file than in memory", program(&[TEXT, (6, 0, CODE + 0x1000, 0x200, 0x100)], None)),
        ("an offset within another page", program(&[(5, 1, CODE, 0x1000, 0x1000)], None)),
        ("over the stub", program(&[TEXT, (6, 0, 0x7fff_ff00_0000, 0x100, 0x1000)], None)),
    ];
    for (what, file) in cases {
        assert_eq!(run(root, &file), Some(126), "{what}");
    }
    // A segment without a file behind it is a bus error, at address 0 one that cannot be mapped.
    assert_eq!(run(root, &program(&[(5, 0x10_0000, CODE, 0x1000, 0x1000)], None)), Some(128 + libc::SIGBUS));
    assert_eq!(run(root, &program(&[(5, 0, 0, 0x1000, 0x1000), TEXT], None)), Some(126));
    // What it asks to be loaded by is missing, or no program either.
    assert_eq!(run(root, &program(&[TEXT], Some("/lib/missing"))), Some(127));
    fs::write(root.join("bin/noise"), "noise").unwrap();
    fs::set_permissions(root.join("bin/noise"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run(root, &program(&[TEXT], Some("/bin/noise"))), Some(126));
    assert_eq!(run(root, b"#!/bin/missing\n"), Some(127));
    assert_eq!(run(root, b"#!\n"), Some(126));
    assert_eq!(run(root, b"#!/program\n"), Some(126), "a script that is its own interpreter");
}

#[test]
fn noise_in_a_header_is_no_more_than_a_bad_program() {
    if fs::File::open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let root = root();
    let good = program(&[TEXT, (6, 0, CODE + 0x1000, 0x100, 0x2000)], None);
    let mut numbers = crate::wild::Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60 {
        let mut file = good.clone();
        for _ in 0..=numbers.next() % 4 {
            let at = 16 + numbers.next() as usize % (64 + 2 * 56 - 16);
            file[at] = numbers.next() as u8;
        }
        let code = run(root.path(), &file).expect("the VMM itself is not killed");
        // It ran, was refused, or died of what it did.
        assert!(matches!(code, 7 | 126 | 129..=159), "{code}: {:x?}", &file[..176]);
    }
}
