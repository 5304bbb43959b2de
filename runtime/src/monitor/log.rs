//! `container.log` in the Kubernetes CRI log format: `TIME stdout|stderr F|P TEXT`, one record a line, binary-safe.
//! `P` marks a record without the line's end.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use jiff::Timestamp;

use crate::error::{Attempt as _, Result};

/// A line without end is cut here.
const MAX_LINE: usize = 16 << 10;

/// Which stream a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Output,
    Error,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "stdout",
            Self::Error => "stderr",
        }
    }
}

/// The log and the unfinished line of each stream.
pub(super) struct Log {
    file: File,
    unfinished: [Vec<u8>; 2],
}

impl Log {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.attempt(|| format!("open the log {}", path.display()))?;
        Ok(Self { file, unfinished: [Vec::new(), Vec::new()] })
    }

    /// Adds what a stream has brought.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let now = Timestamp::now();
        let unfinished = &mut self.unfinished[stream as usize];
        unfinished.extend(bytes);
        let mut records = Vec::new();
        let mut rest = unfinished.as_slice();
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            record(&mut records, now, stream, 'F', &rest[..end]);
            rest = &rest[end + 1..];
        }
        while rest.len() >= MAX_LINE {
            record(&mut records, now, stream, 'P', &rest[..MAX_LINE]);
            rest = &rest[MAX_LINE..];
        }
        *unfinished = rest.to_vec();
        self.append(&records);
    }

    /// Writes lines that never got their end.
    pub(super) fn finish(&mut self) {
        let mut records = Vec::new();
        for stream in [Stream::Output, Stream::Error] {
            let rest = std::mem::take(&mut self.unfinished[stream as usize]);
            if !rest.is_empty() {
                record(&mut records, Timestamp::now(), stream, 'P', &rest);
            }
        }
        self.append(&records);
    }

    /// A full disk must not end the container: its output still reaches who listens.
    fn append(&mut self, records: &[u8]) {
        if !records.is_empty() {
            let _ = self.file.write_all(records);
        }
    }
}

fn record(to: &mut Vec<u8>, now: Timestamp, stream: Stream, tag: char, text: &[u8]) {
    to.extend(format!("{now:.9} {} {tag} ", stream.name()).bytes());
    to.extend(text);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_records_and_pieces_wait_for_their_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Output, b"one\ntw");
        log.write(Stream::Error, b"\xff\n");
        log.write(Stream::Output, b"o\nend");
        log.finish();
        let text = std::fs::read(&path).unwrap();
        let records: Vec<&[u8]> = text.split(|&byte| byte == b'\n').map(|line| &line[line.len().min(31)..]).collect();
        let expected: [&[u8]; 5] = [b"stdout F one", b"stderr F \xff", b"stdout F two", b"stdout P end", b""];
        assert_eq!(records, expected);
    }
}
