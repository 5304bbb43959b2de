//! Headers that somebody else wrote.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Header;
use crate::process::vm::layout;

/// Reads `data` as a program; the fuzz target's body. What is taken for one has segments that can be mapped.
///
/// # Panics
/// Where that does not hold.
pub fn fuzz(data: &[u8]) {
    let mut file = File::from(memfd_create(c"program", MFdFlags::MFD_CLOEXEC).expect("the host makes memory files"));
    file.write_all(data).expect("memory files take what is written");
    let Ok(header) = Header::read(&OwnedFd::from(file)) else { return };
    assert!(!header.segments.is_empty());
    let mut end = 0;
    for segment in &header.segments {
        assert!(segment.address >= end && segment.file_size <= segment.memory_size, "{segment:x?}");
        assert!(segment.offset.checked_add(segment.file_size).is_some());
        end = segment.address.checked_add(segment.memory_size).expect("a segment ends within the address space");
        assert!(end < layout::USER_END, "{segment:x?}");
    }
    assert_eq!(header.span(), Ok(end));
    let _ = header.headers_address();
}

#[cfg(test)]
mod function {
    use proptest::prelude::*;

    use super::*;

    /// The headers of a program with an interpreter and two segments.
    fn program() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        file.extend(words(&[0x1000, 64, 0]));
        file.extend(b"\0\0\0\0\x40\0\x38\0\x03\0\x40\0\0\0\0\0");
        let headers = [(3, 4, 232, 232, 7, 7), (1, 5, 0, 0, 0x100, 0x2000), (1, 6, 0x800, 0x2800, 0x100, 0x4000)];
        for (kind, flags, offset, address, in_file, in_memory) in headers {
            file.extend(words(&[kind | flags << 32, offset, address, address, in_file, in_memory, 0x1000]));
        }
        file.extend(b"/ld.so\0");
        file
    }

    #[test]
    fn a_program_is_read() {
        let mut file = File::from(memfd_create(c"program", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(&program()).unwrap();
        let header = Header::read(&OwnedFd::from(file)).unwrap();
        assert_eq!((header.segments.len(), header.interpreter.as_deref()), (2, Some(&b"/ld.so"[..])));
        assert_eq!((header.span(), header.headers_address()), (Ok(0x6800), 64));
    }

    proptest! {
        #[test]
        fn a_damaged_program_is_refused_or_can_be_mapped(
            changes in prop::collection::vec((16..238usize, any::<u8>()), 0..6),
            length in 0..239usize,
        ) {
            let mut file = program();
            for (at, byte) in changes {
                file[at] = byte;
            }
            fuzz(&file);
            fuzz(&file[..length.min(file.len())]);
        }
    }
}
