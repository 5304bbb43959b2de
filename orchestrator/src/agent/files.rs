//! The files of a task: `stdout` and `stderr`, which are taken from its log, and what it leaves in its directory.
//!
//! The directory belongs to the task, which may put there what it likes: links that lead elsewhere, pipes that nobody
//! writes to, files that change. So whatever is opened is found by descriptor below the directory, without leaving it, and
//! only looked at before it is known to be a plain file or a directory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_engine::logs::{LOG, Outline, Stream};
use berth_engine::{Container, Roots};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2, statat};
use rustix::io::Errno;

use super::kept_log;
use crate::api::agent::{Answer, FileInfo, MOST_READ};

/// What the log itself is called among the files of a task: with the time of each line, and both streams in their order.
pub const LOG_FILE: &str = "container.log";
/// Where tasks find their directory, and the variable that says so.
pub const PLACE: &str = "/mnt/mesos/sandbox";
pub const VARIABLE: &str = "MESOS_SANDBOX";
/// The most files that are listed of one directory.
const MOST_FILES: usize = 10_000;
/// Of how many logs it is remembered where their streams are.
const OUTLINES: usize = 16;
/// How often a path is looked up again that changed meanwhile.
const TRIES: usize = 16;

/// The directory of the task in the sandbox of this name, while that is there.
pub fn directory(agent: &Path, sandbox: &str) -> PathBuf {
    agent.join("sandboxes").join(sandbox)
}

/// What it becomes when the sandbox is removed.
pub fn left(agent: &Path, sandbox: &str) -> PathBuf {
    agent.join("left").join(sandbox)
}

/// Where questions are answered from.
#[derive(Debug, Clone)]
pub struct Files {
    roots: Roots,
    /// The agent's.
    directory: PathBuf,
    outlines: Arc<Mutex<Outlines>>,
}

/// The logs that were read last, the latest at the end.
type Outlines = VecDeque<(String, Arc<Mutex<Outline>>)>;

impl Files {
    pub fn new(roots: &Roots, directory: &Path) -> Files {
        Files { roots: roots.clone(), directory: directory.to_owned(), outlines: Arc::default() }
    }

    /// What is in a directory of the task in a sandbox, which is there or was. `path` is the one that was asked for, without
    /// what leads to the task's directory.
    pub fn list(&self, sandbox: &str, path: &str, asked: &str) -> Answer {
        answer(asked, Task { files: self, sandbox }.list(path, asked).map(Answer::Listed))
    }

    /// What is in a file of the task in a sandbox.
    pub fn read(&self, sandbox: &str, path: &str, asked: &str, offset: u64, length: u64) -> Answer {
        let read = Task { files: self, sandbox }.read(path, offset, length.min(MOST_READ));
        answer(asked, read.map(|(size, data)| Answer::Read(size, BASE64_STANDARD.encode(data))))
    }

    /// Where the streams are in a task's log, as far as it was read before.
    fn outline(&self, sandbox: &str) -> Arc<Mutex<Outline>> {
        let mut outlines = self.outlines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = outlines.iter().position(|(name, _)| name == sandbox).and_then(|index| outlines.remove(index));
        let (name, outline) = known.unwrap_or_else(|| (sandbox.to_owned(), Arc::default()));
        if outlines.len() == OUTLINES {
            outlines.pop_front();
        }
        outlines.push_back((name, Arc::clone(&outline)));
        outline
    }
}

fn answer(asked: &str, answer: io::Result<Answer>) -> Answer {
    answer.unwrap_or_else(|error| {
        let message = format!("{asked}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound => Answer::NotFound(message),
            io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory => Answer::Refused(message),
            _ => Answer::Failed(message),
        }
    })
}

struct Task<'a> {
    files: &'a Files,
    sandbox: &'a str,
}

impl Task<'_> {
    /// What it has written, if it ever ran and that is kept.
    fn log(&self) -> io::Result<File> {
        let of_container = Container::find(&self.files.roots, self.sandbox).map(|it| it.dir().join(LOG));
        let open = |path: PathBuf| File::open(path);
        let log = of_container.map_or_else(|_| Err(io::ErrorKind::NotFound.into()), open);
        // It moves when the sandbox is removed.
        log.or_else(|_| open(kept_log(&self.files.directory, self.sandbox)))
    }

    fn directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: PathBuf| open(path, flags, Mode::empty());
        // It moves when the sandbox is removed.
        let own = open(directory(&self.files.directory, self.sandbox));
        Ok(own.or_else(|_| open(left(&self.files.directory, self.sandbox)))?)
    }

    fn list(&self, path: &str, asked: &str) -> io::Result<Vec<FileInfo>> {
        let mut files = Vec::new();
        let below = |name: &str| format!("{}/{name}", asked.trim_end_matches('/'));
        if path.is_empty()
            && let Ok(log) = self.log()
        {
            let stat = fstat(&log)?;
            let outline = self.files.outline(self.sandbox);
            let mut outline = outline.lock().map_err(|_| io::Error::other("an earlier look at the log failed"))?;
            outline.update(&log)?;
            let size = |name| match stream(name) {
                Some(stream) => outline.length(stream),
                None => stat.st_size.unsigned_abs(),
            };
            files.extend(["stdout", "stderr", LOG_FILE].map(|name| info(below(name), &stat, size(name))));
        }
        let directory = match self.directory() {
            // Tasks in other isolations have none, and an empty one is not kept.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !files.is_empty() => return Ok(files),
            other => find(&other?, path)?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&directory, ".", flags, Mode::empty())?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let own = [c".", c".."].contains(&name) || (path.is_empty() && is_own(&name.to_string_lossy()));
            if own {
                continue;
            }
            if files.len() == MOST_FILES {
                return Err(invalid(&format!("has more than {MOST_FILES} files")));
            }
            match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    files.push(info(below(&name.to_string_lossy()), &stat, stat.st_size.unsigned_abs()));
                }
                // It was removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }

    /// The size of a file, and what is in it from `offset` on.
    fn read(&self, path: &str, offset: u64, length: u64) -> io::Result<(u64, Vec<u8>)> {
        if !is_own(path) {
            let found = find(&self.directory()?, path)?;
            if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
                return Err(invalid("is not a plain file"));
            }
            // What was looked at, and nothing else, is opened: `found` holds it.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty())?;
            return read_at(&File::from(file), offset, length);
        }
        let log = self.log()?;
        let Some(stream) = stream(path) else { return read_at(&log, offset, length) };
        let outline = self.files.outline(self.sandbox);
        let mut outline = outline.lock().map_err(|_| io::Error::other("an earlier look at the log failed"))?;
        outline.update(&log)?;
        Ok((outline.length(stream), outline.read(&log, stream, offset, length)?))
    }
}

/// Whether it is one of the files that the agent makes of the log.
fn is_own(path: &str) -> bool {
    path == LOG_FILE || stream(path).is_some()
}

fn stream(path: &str) -> Option<Stream> {
    match path {
        "stdout" => Some(Stream::Stdout),
        "stderr" => Some(Stream::Stderr),
        _ => None,
    }
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// Finds what is below a directory, without opening it. Links are followed as long as they stay inside.
fn find(directory: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..TRIES {
        match openat2(directory.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel saw a rename under way and asks to try again (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(Errno::XDEV) => return Err(invalid("leads out of the task's directory")),
            Err(Errno::LOOP) => return Err(invalid("leads through too many links")),
            Err(Errno::NAMETOOLONG) => return Err(invalid("has a name that is too long")),
            other => return Ok(other?),
        }
    }
    Err(io::Error::other("what is there is being moved"))
}

/// The size of a file, and what is in it from `offset` on.
fn read_at(file: &File, offset: u64, length: u64) -> io::Result<(u64, Vec<u8>)> {
    let size = file.metadata()?.len();
    let length = length.min(size.saturating_sub(offset));
    let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            // It was cut meanwhile.
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(filled);
    Ok((size, data))
}

fn info(path: String, stat: &Stat, size: u64) -> FileInfo {
    let seconds = Duration::from_secs(stat.st_mtime.max(0).unsigned_abs());
    FileInfo {
        path,
        links: stat.st_nlink,
        size,
        modified: seconds + Duration::from_nanos(stat.st_mtime_nsec),
        mode: stat.st_mode,
        user: stat.st_uid,
        group: stat.st_gid,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{makedev, mknodat};

    use super::*;

    const SANDBOX: &str = "task-1";

    /// An agent with a task that has left a file, and a secret of the host.
    fn agent() -> (tempfile::TempDir, Files, PathBuf) {
        let host = tempfile::tempdir().unwrap();
        let roots = Roots::new(&host.path().join("data"), &host.path().join("state")).unwrap();
        let files = Files::new(&roots, host.path());
        let own = directory(host.path(), SANDBOX);
        std::fs::create_dir_all(own.join("sub")).unwrap();
        std::fs::write(host.path().join("secret"), "secret").unwrap();
        std::fs::write(own.join("sub/file"), "0123456789").unwrap();
        (host, files, own)
    }

    fn read(files: &Files, path: &str, offset: u64, length: u64) -> Answer {
        files.read(SANDBOX, path, &format!("asked/{path}"), offset, length)
    }

    fn content(size: u64, text: &str) -> Answer {
        Answer::Read(size, BASE64_STANDARD.encode(text))
    }

    fn list(files: &Files, path: &str) -> Answer {
        files.list(SANDBOX, path, &format!("asked/{path}"))
    }

    #[test]
    fn reading_is_bounded_wherever_it_begins() {
        let (_host, files, own) = agent();
        for (offset, length, text) in [
            (0, 10, "0123456789"),
            (3, 2, "34"),
            (8, u64::MAX, "89"),
            (10, 1, ""),
            (u64::MAX, u64::MAX, ""),
            (0, 0, ""),
        ] {
            assert_eq!(read(&files, "sub/file", offset, length), content(10, text), "{length} bytes at {offset}");
        }
        // All hole, and far more than anybody has memory for.
        File::create(own.join("huge")).unwrap().set_len(1 << 40).unwrap();
        let Answer::Read(size, data) = read(&files, "huge", 1 << 39, u64::MAX) else { panic!("not read") };
        assert_eq!((size, BASE64_STANDARD.decode(data).unwrap().len() as u64), (1 << 40, MOST_READ));
    }

    #[test]
    fn what_a_task_puts_into_its_directory_leads_nowhere_else() {
        let (host, files, own) = agent();
        symlink(host.path().join("secret"), own.join("absolute")).unwrap();
        symlink("../../secret", own.join("relative")).unwrap();
        symlink("..", own.join("up")).unwrap();
        symlink("/proc/self/root", own.join("magic")).unwrap();
        symlink("loop", own.join("loop")).unwrap();
        symlink("sub/file", own.join("inside")).unwrap();
        mknodat(CWD, own.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let secret = host.path().join("secret");
        let paths = [
            "absolute",
            "relative",
            "up/../secret",
            "up/task-1/sub/file",
            "../../secret",
            "sub/../../../secret",
            secret.to_str().unwrap(),
            "magic/etc/passwd",
            "loop",
            "pipe",
            "sub",
            "",
        ];
        for path in paths {
            let answer = read(&files, path, 0, 100);
            assert!(matches!(&answer, Answer::Refused(why) if why.starts_with("asked/")), "{path}: {answer:?}");
        }
        for path in ["up", "../..", "/", "magic", "loop", "pipe", "sub/file"] {
            assert!(matches!(list(&files, path), Answer::Refused(_)), "{path}");
        }
        for path in ["nothing", "sub/nothing", "stdout", "stderr", LOG_FILE] {
            assert!(matches!(read(&files, path, 0, 100), Answer::NotFound(_)), "{path}");
        }
        let long = "n".repeat(300);
        assert!(matches!(read(&files, &long, 0, 1), Answer::Refused(_)));
        assert_eq!(read(&files, "inside", 0, 3), content(10, "012"));
        if rustix::process::geteuid().is_root() {
            mknodat(CWD, own.join("device"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 5)).unwrap();
            assert!(matches!(read(&files, "device", 0, 100), Answer::Refused(_)));
        } else {
            eprintln!("NOT TESTED: a device, which only root can make");
        }
    }

    #[test]
    fn the_streams_of_a_log_are_files_like_others() {
        let (host, files, own) = agent();
        let log = kept_log(host.path(), SANDBOX);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let line = |stream: &str, text: &str| format!("2026-01-31T12:00:00.000000001Z {stream} {text}\n");
        let text = [line("stdout", "F one"), line("stderr", "F wrong"), line("stdout", "P two")].concat();
        std::fs::write(&log, &text).unwrap();
        // What it calls the same is hidden by them.
        symlink("/etc/passwd", own.join("stdout")).unwrap();
        let Answer::Listed(listed) = list(&files, "") else { panic!("not listed") };
        let listed: Vec<(&str, u64)> = listed.iter().map(|file| (&*file.path, file.size)).collect();
        let sub = std::fs::metadata(own.join("sub")).unwrap().len();
        let log_size = text.len() as u64;
        let expected = [("container.log", log_size), ("stderr", 6), ("stdout", 7), ("sub", sub)];
        assert_eq!(listed, expected.map(|(name, size)| (&*format!("asked/{name}").leak(), size)));
        assert_eq!(read(&files, "stdout", 0, 100), content(7, "one\ntwo"));
        assert_eq!(read(&files, "stdout", 3, 2), content(7, "\nt"));
        assert_eq!(read(&files, "stderr", 0, 100), content(6, "wrong\n"));
        assert_eq!(read(&files, LOG_FILE, 0, 1000), content(log_size, &text));
        std::fs::write(&log, text.clone() + &line("stdout", "F !")).unwrap();
        assert_eq!(read(&files, "stdout", 7, 100), content(9, "!\n"));
        // It moves when the sandbox is removed.
        let moved = left(host.path(), SANDBOX);
        std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
        std::fs::rename(&own, &moved).unwrap();
        assert_eq!(read(&files, "sub/file", 0, 2), content(10, "01"));
        // Without a directory of its own, a task has written all the same.
        std::fs::remove_dir_all(moved).unwrap();
        let Answer::Listed(listed) = list(&files, "") else { panic!("not listed") };
        assert_eq!(listed.len(), 3);
    }
}
