//! Extended attributes: all of a file's in one block.

use super::super::BLOCK;

/// Bytes of the block's header.
const HEADER: usize = 32;
/// Bytes of an entry without its name.
const ENTRY: usize = 16;
/// Beginnings of names that are written as a number. Longer ones come first.
const PREFIXES: [(&[u8], u8); 4] =
    [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"security.", 6), (b"user.", 1)];

/// The block; `None`: they do not fit into it.
pub fn block(all: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    const MAGIC: u32 = 0xea02_0000;

    let mut entries = Vec::with_capacity(all.len());
    for (name, value) in all {
        let (rest, prefix) =
            PREFIXES.iter().find_map(|(prefix, number)| Some((name.strip_prefix(*prefix)?, *number)))?;
        let is_acl = matches!(prefix, 2 | 3);
        entries.push((prefix, rest.len(), rest, if is_acl { acl(value)? } else { value.clone() }));
    }
    // The kernel looks for a name in this order.
    entries.sort();

    let mut block = vec![0; BLOCK as usize];
    let (mut front, mut back) = (HEADER, block.len());
    let mut sum = 0_u32;
    for (prefix, length, name, value) in entries {
        let end = front + (ENTRY + length).next_multiple_of(4);
        back = back.checked_sub(value.len().next_multiple_of(4))?;
        // Four bytes of zeros end the list.
        if end + 4 > back {
            return None;
        }
        block[back..back + value.len()].copy_from_slice(&value);
        let hash = hash(name, &block[back..back + value.len().next_multiple_of(4)]);
        sum = sum.rotate_left(16) ^ hash;
        let offset = if value.is_empty() { 0 } else { back as u16 };
        block[front] = u8::try_from(length).ok()?;
        block[front + 1] = prefix;
        block[front + 2..front + 4].copy_from_slice(&offset.to_le_bytes());
        block[front + 8..front + 12].copy_from_slice(&(value.len() as u32).to_le_bytes());
        block[front + 12..front + 16].copy_from_slice(&hash.to_le_bytes());
        block[front + ENTRY..front + ENTRY + length].copy_from_slice(name);
        front = end;
    }
    // How many files use the block, how many blocks there are, and the hash of all.
    for (at, value) in [(0, MAGIC), (4, 1), (8, 1), (12, sum)] {
        block[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Some(block)
}

/// The hash of a name and its value, which is filled up with zeros to a multiple of four bytes.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let name = name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    let words = value.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    words.fold(name, |hash, word| hash.rotate_left(16) ^ word)
}

/// An access control list as ext4 keeps it: ids only where an entry names a user or group.
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    /// Bytes of an entry in an extended attribute's value: tag, permissions, id.
    const ENTRY: usize = 8;

    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % ENTRY != 0 {
        return None;
    }
    let mut bytes = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        bytes.extend(if matches!(tag, USER | GROUP) { entry } else { &entry[..4] });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_a_block_is_refused() {
        let one = |name: &[u8], length: usize| (name.to_vec(), vec![1; length]);
        // What is left beside the header, an entry with a name of one byte, and the end of the list.
        let most = BLOCK as usize - HEADER - 20 - 4;
        assert!(block(&[one(b"user.a", most)]).is_some());
        assert!(block(&[one(b"user.a", most + 1)]).is_none());
        assert!(block(&[one(b"user.a", most - 100), one(b"user.b", 100)]).is_none());
        assert!(block(&[one(b"user.a", 1 << 16)]).is_none());
        assert!(block(&[one(b"unknown.a", 1)]).is_none());
        assert!(block(&[one(b"system.posix_acl_access", 3)]).is_none());
    }
}
