//! The smallest guest there is.

/// An ELF vmlinux whose one segment is its headers and, behind them, `code`, which is entered first.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const ENTRY: u64 = 64 + 56;
    let length = ENTRY + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([ADDRESS + ENTRY, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0u16, 0, 64, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    file.extend([1u32, 7].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0, ADDRESS, ADDRESS, length, length, 0x1000].iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(code);
    file
}
