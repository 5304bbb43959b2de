//! The 512-byte header block.

use super::{Error, Result};

pub const BLOCK: usize = 512;

/// One header block whose checksum is right.
pub struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Checks the checksum; historic writers summed signed bytes, so either sum counts.
    pub fn new(block: &'a [u8; BLOCK]) -> Result<Self> {
        let stored = number(&block[148..156])?;
        let masked = |(index, byte): (usize, &u8)| {
            if (148..156).contains(&index) { b' ' } else { *byte }
        };
        let unsigned: i64 = block.iter().enumerate().map(masked).map(i64::from).sum();
        let signed: i64 = block.iter().enumerate().map(masked).map(|byte| i64::from(byte as i8)).sum();
        if stored != unsigned && stored != signed {
            return Err(Error::damaged("a header has a wrong checksum"));
        }
        Ok(Self(block))
    }

    fn is_ustar(&self) -> bool {
        self.0[257..263] == *b"ustar\0"
    }

    pub fn is_gnu(&self) -> bool {
        self.0[257..265] == *b"ustar  \0"
    }

    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.is_ustar() { text(&self.0[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub fn mode(&self) -> Result<u32> {
        Ok((number(&self.0[100..108])? & 0o7777) as u32)
    }

    pub fn uid(&self) -> Result<u64> {
        unsigned(&self.0[108..116])
    }

    pub fn gid(&self) -> Result<u64> {
        unsigned(&self.0[116..124])
    }

    pub fn size(&self) -> Result<u64> {
        unsigned(&self.0[124..136])
    }

    pub fn mtime(&self) -> Result<i64> {
        number(&self.0[136..148])
    }

    /// Major and minor number.
    pub fn device(&self) -> Result<(u32, u32)> {
        let part = |field| u32::try_from(number(field)?).map_err(|_| Error::damaged("a device number is out of range"));
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    /// The four extents a GNU sparse header holds, and whether more blocks of them follow.
    pub fn gnu_sparse(&self) -> (&'a [u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    /// Apparent size in a GNU sparse header.
    pub fn gnu_real_size(&self) -> Result<u64> {
        unsigned(&self.0[483..495])
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// An octal number, blank for zero, or GNU's big-endian two's complement marked by the first bit.
pub fn number(field: &[u8]) -> Result<i64> {
    let out_of_range = || Error::damaged("a number in a header is out of range");
    if field[0] & 0x80 != 0 {
        // The mark is bit 7 of the first byte, the sign bit 6.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let start: i128 = i128::from(if negative { first as i8 } else { first.cast_signed() });
        let value = field[1..].iter().fold(start, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value).map_err(|_| out_of_range());
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => {
            value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(out_of_range)
        }
        _ => Err(Error::damaged("a number in a header is not octal")),
    })
}

pub fn unsigned(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?).map_err(|_| Error::damaged("a size or id in a header is negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        let large = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(number(&large).unwrap(), i64::MAX);
        assert!(number(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(number(b"12x\0").is_err());
        assert!(unsigned(&[0xff; 12]).is_err());
    }
}
