//! Each stream of a log as if it were a file of its own: what was written to it, byte for byte.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use super::{Entry, Stream, next_record};

/// How far apart the marks of an outline are, in bytes of the log.
const MARK: u64 = 1 << 20;

/// Where in a log the bytes of its streams are: what makes reading a long one piece by piece cheap. It grows with the log.
#[derive(Debug, Default)]
pub struct Outline {
    /// The end of what was looked through.
    end: Mark,
    marks: Vec<Mark>,
}

/// The beginning of a record, and how much of each stream comes before it.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    log: u64,
    streams: [u64; 2],
}

impl Outline {
    /// Looks through what was added to the log.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn update(&mut self, log: &File) -> io::Result<()> {
        let marks = &mut self.marks;
        self.end = scan(log, self.end, |mark, _| {
            if mark.log >= marks.last().map_or(0, |last| last.log) + MARK {
                marks.push(mark);
            }
            true
        })?;
        Ok(())
    }

    /// How many bytes a stream has.
    pub fn length(&self, stream: Stream) -> u64 {
        self.end.streams[stream as usize]
    }

    /// What a stream has from `offset` on, `length` bytes at most; nothing at its end and behind.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(&self, log: &File, stream: Stream, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let until = offset.saturating_add(length).min(self.length(stream));
        let mut bytes = Vec::new();
        if offset >= until {
            return Ok(bytes);
        }
        let before = |mark: &Mark| mark.streams[stream as usize] <= offset;
        let begin = self.marks[..self.marks.partition_point(before)].last().copied().unwrap_or_default();
        scan(log, begin, |mark, entry| {
            let begin = mark.streams[stream as usize];
            if entry.stream == stream {
                let written = [entry.content, if entry.full { b"\n" } else { b"" }].concat();
                let inside =
                    |at: u64| usize::try_from(at.saturating_sub(begin)).unwrap_or(usize::MAX).min(written.len());
                bytes.extend_from_slice(&written[inside(offset)..inside(until)]);
            }
            begin < until
        })?;
        Ok(bytes)
    }
}

/// Goes through the whole records from a mark on, as long as `go_on` says so: the mark after the last.
fn scan(log: &File, mut mark: Mark, mut go_on: impl FnMut(Mark, &Entry) -> bool) -> io::Result<Mark> {
    let mut reader = BufReader::new(At { file: log, position: mark.log });
    let mut record = Vec::new();
    while let Some(length) = next_record(&mut reader, &mut record)? {
        if let Some(entry) = Entry::parse(&record) {
            if !go_on(mark, &entry) {
                break;
            }
            mark.streams[entry.stream as usize] += entry.content.len() as u64 + u64::from(entry.full);
        }
        mark.log += length;
    }
    Ok(mark)
}

/// A file that is read from a position of one's own: others read it at the same time.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn streams_are_read_wherever_one_likes_while_the_log_grows() {
        let mut log = tempfile::tempfile().unwrap();
        let mut outline = Outline::default();
        let mut written = [Vec::new(), Vec::new()];
        for round in 0..3 {
            for line in 0..8000 {
                let (stream, name) = if line % 5 == 0 { (1, "stderr") } else { (0, "stdout") };
                let (text, tag) = (format!("{round} {line:0100}"), if line % 3 == 0 { "P" } else { "F" });
                writeln!(log, "2026-01-31T12:00:00.000000001Z {name} {tag} {text}").unwrap();
                written[stream].extend(text.bytes());
                written[stream].extend((tag == "F").then_some(b'\n'));
            }
            // One that is still being written does not count.
            write!(log, "2026-01-31T12:00:00.000000001Z stdout F half").unwrap();
            outline.update(&log).unwrap();
            writeln!(log).unwrap();
            for (stream, written) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut written) {
                assert_eq!(outline.length(stream), written.len() as u64);
                for offset in [0, 1, 99, 700_001, written.len() as u64 - 1, written.len() as u64, u64::MAX] {
                    for length in [0, 1, 150_000, u64::MAX] {
                        let begin = written.len().min(usize::try_from(offset).unwrap());
                        let end = begin.saturating_add(usize::try_from(length).unwrap()).min(written.len());
                        let read = outline.read(&log, stream, offset, length).unwrap();
                        assert!(read == written[begin..end], "{length} bytes at {offset}");
                    }
                }
                if stream == Stream::Stdout {
                    written.extend(b"half\n");
                }
            }
        }
        assert!(outline.marks.len() >= 2, "{:?}", outline.marks);
    }
}
