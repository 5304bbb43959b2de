//! What a container has written: its log in the format of the Kubernetes container runtime interface, one record a
//! line, `TIME stdout|stderr F|P CONTENT`. `P` is a part of a line whose rest follows; `F` ends a line.

mod streams;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use jiff::Timestamp;

use crate::container::Container;
use crate::error::{Attempt as _, Result};
use crate::monitor::Monitor;
use crate::watch::Watch;

pub use streams::Outline;

/// The name of a log in the directory of its container.
pub const LOG: &str = "container.log";
/// Bytes that the time, stream and tag of a record take at most.
const HEADER_BYTES: usize = 64;
/// Bytes read at once when looking for the beginning of the tail.
const BLOCK_BYTES: u64 = 64 << 10;
/// Longest record that is kept in memory; a longer one is not ours and is passed over.
const MAX_RECORD: u64 = 1 << 20;

/// What of a log to show, and how.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Go on with what is written until the container ends.
    pub follow: bool,
    /// Not before this.
    pub since: Option<Timestamp>,
    /// Not after this.
    pub until: Option<Timestamp>,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Put the time before each line.
    pub timestamps: bool,
}

/// Which of its streams the process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: Timestamp,
    stream: Stream,
    /// Whether the line ends here.
    full: bool,
    content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads a record without its newline.
    fn parse(record: &'a [u8]) -> Option<Self> {
        let mut fields = record.splitn(4, |&byte| byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Tags may be joined with colons; the first says whether the line is full.
        let full = match fields.next()?.split(|&byte| byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, stream, full, content: fields.next().unwrap_or_default() })
    }
}

/// Shows a container's log on `stdout` and `stderr`, each stream to its own.
pub fn show(container: &Container, wanted: &Wanted, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<()> {
    let monitor = if wanted.follow { Monitor::of(container)? } else { None };
    show_file(&container.dir().join(LOG), monitor.as_ref(), wanted, stdout, stderr)
}

/// Shows a log that lies elsewhere than with a container: nothing is added to it any more, unless there is a monitor.
pub fn show_file(
    path: &Path,
    monitor: Option<&Monitor>,
    wanted: &Wanted,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<()> {
    let mut watch = None;
    let wait = || {
        let Some(monitor) = monitor else { return Ok(false) };
        let Some(watch) = &watch else {
            // What is added from now on is seen, and what was added before is printed next.
            watch = Some(Watch::new(path)?);
            return Ok(true);
        };
        let left = wanted.until.map(|until| until.duration_since(Timestamp::now()).unsigned_abs());
        // The last words were written before the monitor ended.
        Ok(!watch.wait(Some(monitor.pidfd().as_fd()), left)?)
    };
    show_growing(path, wait, wanted, stdout, stderr)
}

/// Shows a log that grows: `wait` returns when there is more, and says whether there may be more after that.
pub fn show_growing(
    path: &Path,
    mut wait: impl FnMut() -> Result<bool>,
    wanted: &Wanted,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<()> {
    let attempt = || format!("read {}", path.display());
    let file = match File::open(path) {
        // Never started: nothing was written, and nothing will be before somebody starts it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.attempt(attempt)?,
    };
    let begin = match wanted.tail {
        Some(lines) => tail(&file, lines).attempt(attempt)?,
        None => 0,
    };
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(begin)).attempt(attempt)?;
    let mut printer = Printer { wanted, path, begun: [false; 2], streams: [stdout, stderr] };
    loop {
        printer.print_records(&mut reader)?;
        if wanted.until.is_some_and(|until| until < Timestamp::now()) {
            return Ok(());
        }
        if !wait()? {
            return printer.print_records(&mut reader);
        }
    }
}

/// Prints records and remembers in which streams a line is under way.
struct Printer<'a> {
    wanted: &'a Wanted,
    path: &'a Path,
    begun: [bool; 2],
    streams: [&'a mut dyn Write; 2],
}

impl Printer<'_> {
    /// Prints the whole records up to the end of the file; one that is still being written is read again later.
    fn print_records(&mut self, reader: &mut BufReader<File>) -> Result<()> {
        let attempt = || format!("read {}", self.path.display());
        let mut record = Vec::new();
        while next_record(reader, &mut record).attempt(attempt)?.is_some() {
            if let Some(entry) = Entry::parse(&record) {
                self.print(&entry).attempt(|| "write what the container has written")?;
            }
        }
        reader.seek_relative(-(record.len() as i64)).attempt(attempt)?;
        self.streams.iter_mut().try_for_each(Write::flush).attempt(|| "write what the container has written")
    }

    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let too_old = self.wanted.since.is_some_and(|since| entry.time < since);
        if too_old || self.wanted.until.is_some_and(|until| entry.time > until) {
            return Ok(());
        }
        let stream = entry.stream as usize;
        if self.wanted.timestamps && !self.begun[stream] {
            write!(self.streams[stream], "{:.9} ", entry.time)?;
        }
        self.begun[stream] = !entry.full;
        self.streams[stream].write_all(entry.content)?;
        if entry.full { self.streams[stream].write_all(b"\n") } else { Ok(()) }
    }
}

/// Reads the next whole record, without its newline: how many bytes of the log it takes. There is none at the end, and where
/// one is still being written, of which `record` then has what there is. One that is not ours is empty.
fn next_record(reader: &mut impl BufRead, record: &mut Vec<u8>) -> io::Result<Option<u64>> {
    record.clear();
    let length = reader.by_ref().take(MAX_RECORD).read_until(b'\n', record)? as u64;
    if record.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Some(length));
    }
    if length < MAX_RECORD {
        return Ok(None);
    }
    record.clear();
    Ok(Some(length + reader.skip_until(b'\n')? as u64))
}

/// Where the last `lines` lines begin, looking from the end backwards.
fn tail(file: &File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut full_lines = 0;
    let mut begin = length;
    let mut starts: VecDeque<u64> = VecDeque::new();
    let mut block_end = length;
    loop {
        // The beginnings of records in the block before, the last one first.
        while starts.is_empty() && block_end > 0 {
            let block_begin = block_end.saturating_sub(BLOCK_BYTES);
            let mut block = vec![0; (block_end - block_begin) as usize];
            file.read_exact_at(&mut block, block_begin)?;
            let newlines = block.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let mut found: Vec<u64> = newlines.map(|(at, _)| block_begin + at as u64 + 1).collect();
            if block_begin == 0 {
                found.insert(0, 0);
            }
            starts.extend(found.into_iter().rev().filter(|&start| start < length));
            block_end = block_begin;
        }
        let Some(start) = starts.pop_front() else {
            return Ok(begin);
        };
        let mut header = [0; HEADER_BYTES];
        let got = file.read_at(&mut header, start)?;
        // Every full record ends a line, and so does the last of all, whose line is still under way.
        if begin == length || Entry::parse(&header[..got]).is_some_and(|entry| entry.full) {
            full_lines += 1;
        }
        if full_lines > lines {
            return Ok(begin);
        }
        begin = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-31T12:00:00.000000001Z stdout F one\n\
                       2026-01-31T12:00:01.000000001Z stderr F wrong\n\
                       2026-01-31T12:00:02.000000001Z stdout P tw\n\
                       2026-01-31T12:00:02.000000002Z stdout F o\n\
                       not a record\n\
                       2026-01-31T12:00:03.000000001Z stdout F \n\
                       2026-01-31T12:00:04.000000001Z stdout P three";

    fn printed(log: &str, wanted: &Wanted) -> (String, String) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(log.as_bytes()).unwrap();
        let begin = wanted.tail.map_or(0, |lines| tail(&file, lines).unwrap());
        file.seek(SeekFrom::Start(begin)).unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut printer =
            Printer { wanted, path: Path::new("log"), begun: [false; 2], streams: [&mut stdout, &mut stderr] };
        printer.print_records(&mut BufReader::new(file)).unwrap();
        (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    #[test]
    fn parts_are_joined_and_streams_are_kept_apart() {
        let all = printed(LOG, &Wanted::default());
        assert_eq!(all, ("one\ntwo\n\n".to_owned(), "wrong\n".to_owned()));
        let whole = printed(&format!("{LOG}\n"), &Wanted::default());
        assert_eq!(whole.0, "one\ntwo\n\nthree", "what ended without a newline is shown without one");
    }

    #[test]
    fn times_select_and_are_shown() {
        let since = Some("2026-01-31T12:00:02Z".parse().unwrap());
        let until = Some("2026-01-31T12:00:02.5Z".parse().unwrap());
        let wanted = Wanted { since, until, timestamps: true, ..Wanted::default() };
        assert_eq!(printed(LOG, &wanted).0, "2026-01-31T12:00:02.000000001Z two\n");
    }

    #[test]
    fn the_tail_counts_lines() {
        let log = format!("{LOG}\n");
        for (lines, expected) in
            [(0, ""), (1, "three"), (2, "\nthree"), (3, "two\n\nthree"), (4, "two\n\nthree"), (5, "one\ntwo\n\nthree")]
        {
            let wanted = Wanted { tail: Some(lines), ..Wanted::default() };
            assert_eq!(printed(&log, &wanted).0, expected, "{lines}");
        }
        assert_eq!(printed("", &Wanted { tail: Some(3), ..Wanted::default() }).0, "");
    }

    #[test]
    fn the_tail_of_a_long_log_is_found_across_blocks() {
        let line = |number: u32| format!("2026-01-31T12:00:00.000000001Z stdout F {number:0100}\n");
        let log: String = (0..5000).map(line).collect();
        let wanted = Wanted { tail: Some(1500), ..Wanted::default() };
        let shown = printed(&log, &wanted).0;
        assert_eq!(shown.lines().count(), 1500);
        assert!(shown.starts_with(&format!("{:0100}", 3500)));
    }

    #[test]
    fn an_endless_record_is_passed_over() {
        let log = format!("{}\n{LOG}\n", "x".repeat(3 << 20));
        assert!(printed(&log, &Wanted::default()).0.starts_with("one\n"));
    }
}
