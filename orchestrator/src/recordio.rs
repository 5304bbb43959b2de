//! `RecordIO`, the framing of streams: the length of a record in decimal digits, a line feed, the record.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The most digits of a length: more than 2⁶⁴ has.
const MOST_DIGITS: usize = 20;

/// How much is read at once, in bytes.
const READ: usize = 16 << 10;

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length is not written in decimal digits.
    #[error("a record begins with its length in decimal digits and a line feed")]
    Length,
    /// A record is too long.
    #[error("a record has {length} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// What it claims.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
}

/// A record in its frame.
pub fn frame(record: &[u8]) -> Bytes {
    let mut framed = record.len().to_string().into_bytes();
    framed.reserve(record.len() + 1);
    framed.push(b'\n');
    framed.extend_from_slice(record);
    framed.into()
}

/// The record in a frame.
pub fn unframe(framed: &[u8]) -> &[u8] {
    let head = framed.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    &framed[head..]
}

/// Cuts a stream into records.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// A decoder of records of at most `limit` bytes.
    pub fn new(limit: usize) -> Decoder {
        Decoder { buffer: BytesMut::new(), limit }
    }

    /// Takes in what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if it is there as a whole.
    pub fn next_record(&mut self) -> Result<Option<Bytes>, Malformed> {
        let head = &self.buffer[..self.buffer.len().min(MOST_DIGITS + 1)];
        let Some(digits) = head.iter().position(|byte| *byte == b'\n') else {
            let digits = head.iter().all(u8::is_ascii_digit) && head.len() <= MOST_DIGITS;
            return if digits { Ok(None) } else { Err(Malformed::Length) };
        };
        let text = std::str::from_utf8(&head[..digits]).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let length = text.and_then(|text| text.parse::<u64>().ok()).ok_or(Malformed::Length)?;
        let fits = usize::try_from(length).ok().filter(|length| *length <= self.limit);
        let size = fits.ok_or(Malformed::TooLong { length, limit: self.limit })?;
        if self.buffer.len() - digits - 1 < size {
            return Ok(None);
        }
        self.buffer.advance(digits + 1);
        Ok(Some(self.buffer.split_to(size).freeze()))
    }

    /// Reads until there is a record; none at the end of the stream.
    pub async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
        loop {
            let record =
                self.next_record().map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))?;
            if record.is_some() {
                return Ok(record);
            }
            self.buffer.reserve(READ);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_cut_wherever_the_stream_is() {
        let stream = [frame(b"one"), frame(b""), frame(b"3\nx")].concat();
        for cut in 0..stream.len() {
            let mut decoder = Decoder::new(3);
            let mut records = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.push(part);
                while let Some(record) = decoder.next_record().unwrap() {
                    records.push(record);
                }
            }
            assert_eq!(records, ["one", "", "3\nx"]);
        }
    }

    #[test]
    fn what_is_no_record_is_an_error_at_once() {
        let cases: [(&[u8], Malformed); 5] = [
            (b"x", Malformed::Length),
            (b"\nabc", Malformed::Length),
            (b"-1\nabc", Malformed::Length),
            (b"111111111111111111111", Malformed::Length),
            (b"4\n", Malformed::TooLong { length: 4, limit: 3 }),
        ];
        for (bytes, malformed) in cases {
            let mut decoder = Decoder::new(3);
            decoder.push(bytes);
            assert_eq!(decoder.next_record(), Err(malformed), "{bytes:?}");
        }
    }
}
