//! Maps of sparse files.

use super::header::{BLOCK, unsigned};
use super::{Error, MAX_EXTENTS, Result, pax};

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// Bytes of one extent in GNU's header blocks: two numbers of 12.
const FIELD: usize = 24;

pub fn check_count(count: usize) -> Result<()> {
    if count < MAX_EXTENTS { Ok(()) } else { Err(Error::damaged("a sparse file has too many extents")) }
}

/// Extents from a GNU header (4) or extension block (21); unused fields are empty.
pub fn push_gnu(fields: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
    for field in fields.chunks_exact(FIELD).filter(|field| field[0] != 0) {
        check_count(extents.len())?;
        extents.push(Extent { offset: unsigned(&field[..12])?, length: unsigned(&field[12..])? });
    }
    Ok(())
}

/// A GNU extension block: 21 extents, and whether another block follows.
pub fn extension(block: &[u8; BLOCK], extents: &mut Vec<Extent>) -> Result<bool> {
    push_gnu(&block[..21 * FIELD], extents)?;
    Ok(block[21 * FIELD] != 0)
}

/// The map of PAX format 1.0: decimal numbers, one a line, first their count, padded to whole blocks.
#[derive(Default)]
pub struct MapInData {
    line: Vec<u8>,
    expected: Option<u64>,
    numbers: Vec<u64>,
}

impl MapInData {
    /// Takes one block; `true` when the map is complete.
    pub fn feed(&mut self, block: &[u8; BLOCK]) -> Result<bool> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err(Error::damaged("a sparse map is malformed"));
                }
                continue;
            }
            let number = pax::decimal(&self.line)?;
            self.line.clear();
            match self.expected {
                None => {
                    check_count(usize::try_from(number).unwrap_or(usize::MAX))?;
                    self.expected = Some(number * 2);
                }
                Some(_) => self.numbers.push(number),
            }
            if self.expected == Some(self.numbers.len() as u64) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn extents(self) -> Vec<Extent> {
        self.numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()
    }
}

/// Extents ascend, do not overlap, stay within the file, and together are as long as the data.
pub fn check(extents: &[Extent], data: u64, real_size: u64) -> Result<()> {
    let wrong = || Error::damaged("a sparse file's map does not fit its data");
    let (mut end, mut total) = (0_u64, 0_u64);
    for extent in extents {
        if extent.offset < end {
            return Err(wrong());
        }
        end = extent.offset.checked_add(extent.length).ok_or_else(wrong)?;
        total += extent.length;
    }
    if end > real_size || total != data { Err(wrong()) } else { Ok(()) }
}
