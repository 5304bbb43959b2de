//! PAX extended headers: `LENGTH KEY=VALUE\n` records that override the next entry's header.

use super::sparse::{self, Extent};
use super::{Entry, Error, Result};

/// What one extended header says.
#[derive(Debug, Default)]
pub struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// GNU's sparse keywords, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Format 0.0: offset and length in turn; format 0.1: the whole map.
    numbers: Vec<u64>,
    map_in_data: bool,
}

impl Pax {
    pub fn parse(mut data: &[u8]) -> Result<Self> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or_else(|| Error::damaged("a PAX record is malformed"))?;
            pax.note(key, value)?;
            data = rest;
        }
        Ok(pax)
    }

    fn note(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => {
                self.mtime = Some(time(value).ok_or_else(|| Error::damaged("a PAX time is malformed"))?);
            }
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.major" => self.sparse.map_in_data = value == b"1",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.push(decimal(value)?)?,
            b"GNU.sparse.map" => {
                for number in value.split(|byte| *byte == b',') {
                    self.sparse.push(decimal(number)?)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// Bytes of data in the archive, where said.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether the sparse map is at the start of the data (format 1.0).
    pub fn has_map_in_data(&self) -> bool {
        self.sparse.map_in_data && self.sparse.real_size.is_some()
    }

    /// Overrides what the header said.
    pub fn apply(self, entry: &mut Entry) {
        let Self { path, link, size, uid, gid, mtime, xattrs, sparse } = self;
        set(&mut entry.path, sparse.name.or(path));
        set(&mut entry.link, link);
        set(&mut entry.uid, uid);
        set(&mut entry.gid, gid);
        if let Some((seconds, nanos)) = mtime {
            (entry.mtime, entry.mtime_nanos) = (seconds, nanos);
        }
        if let Some(size) = size {
            (entry.size, entry.real_size) = (size, size);
        }
        if let Some(real_size) = sparse.real_size {
            entry.real_size = real_size;
            if !sparse.map_in_data {
                let extents = sparse.numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] });
                entry.extents = Some(extents.collect());
            }
        }
        entry.xattrs = xattrs;
    }
}

impl Sparse {
    fn push(&mut self, number: u64) -> Result<()> {
        sparse::check_count(self.numbers.len() / 2)?;
        self.numbers.push(number);
        Ok(())
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Splits off the first record: key, value, and what follows.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

pub fn decimal(value: &[u8]) -> Result<u64> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::damaged("a PAX number is malformed"))
}

/// `[-]SECONDS[.FRACTION]`
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<u32>().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    // A negative time counts down: -1.25 is 0.75 after -2.
    if whole.starts_with('-') && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_binary_safe() {
        let pax = Pax::parse(b"20 path=a\nb=\xff\xfe=\x00\x01\x02\x03\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb=\xff\xfe=\x00\x01\x02\x03"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [&b"x"[..], b"5 a=b", b"99 a=b\n", b"6 ab\n", b"0 a=b\n", b" 6 a=b\n", b"99999999999 a=b\n"] {
            assert!(Pax::parse(data).is_err(), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"1.1234567891"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.x"), None);
    }
}
