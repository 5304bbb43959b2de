//! What programs ask `/proc` about themselves. The host's own `/proc/self` would be the VMM, so everything below the
//! directories of processes is made here: a file's contents are written to a memory file when it is opened.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::descriptors::Kind;
use super::{Ids, OpenFile};
use crate::process::Result;
use crate::process::memory::area::Source;
use crate::process::task::Task;
use crate::process::task::signal::Set;
use crate::process::vm::{layout, lock};

/// What a path below `/proc` or `/dev` stands for.
#[derive(Debug)]
pub enum Entry {
    /// A file with these contents.
    File(Vec<u8>),
    /// A directory with these entries.
    Directory(Vec<Vec<u8>>),
    /// A link with this text.
    Link(Vec<u8>),
    /// An open file of the process.
    Open(Arc<OpenFile>),
}

/// What an absolute path without `.` and `..` stands for; `None` where the root's own file is meant.
pub fn find(task: &Task, path: &[u8]) -> Option<Result<Entry>> {
    match path {
        b"/dev/stdin" => return Some(open_file(task, b"0")),
        b"/dev/stdout" => return Some(open_file(task, b"1")),
        b"/dev/stderr" => return Some(open_file(task, b"2")),
        b"/dev/tty" => return Some(terminal(task)),
        b"/dev/fd" => return Some(process(task, task.pid, b"fd")),
        b"/proc" => return Some(Ok(processes(task))),
        _ => {}
    }
    if let Some(number) = path.strip_prefix(b"/dev/fd/") {
        return Some(open_file(task, number));
    }
    let rest = path.strip_prefix(b"/proc/")?;
    let (first, rest) = rest.split_at(rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len()));
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    let pid = match first {
        b"self" if rest.is_empty() => return Some(Ok(Entry::Link(task.pid.to_string().into_bytes()))),
        b"self" | b"thread-self" => task.pid,
        number => std::str::from_utf8(number).ok()?.parse().ok()?,
    };
    Some(process(task, pid, rest))
}

fn open_file(task: &Task, number: &[u8]) -> Result<Entry> {
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).ok_or(Errno::ENOENT)?;
    task.file(number).map(Entry::Open).map_err(|_| Errno::ENOENT)
}

/// The terminal of the session: the host would give the VMM's.
fn terminal(task: &Task) -> Result<Entry> {
    let mut table = lock(&task.kernel.table);
    let session = table.process(task.pid)?.session;
    let terminal = table.sessions.get(&session).and_then(|session| session.terminal.clone());
    terminal.map(Entry::Open).ok_or(Errno::ENXIO)
}

fn processes(task: &Task) -> Entry {
    let table = lock(&task.kernel.table);
    let mut names: Vec<Vec<u8>> = table.processes.keys().map(|pid| pid.to_string().into_bytes()).collect();
    names.push(b"self".to_vec());
    Entry::Directory(names)
}

fn process(task: &Task, pid: i32, name: &[u8]) -> Result<Entry> {
    let mut table = lock(&task.kernel.table);
    let record = table.process(pid).map_err(|_| Errno::ENOENT)?;
    let own = pid == task.pid;
    let base = record.executable.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let short = String::from_utf8_lossy(&base[..base.len().min(15)]).into_owned();
    let state = if record.zombie.is_some() {
        'Z'
    } else if record.stopped.is_some() {
        'T'
    } else {
        'R'
    };
    let (parent, group, session) = (record.parent, record.group, record.session);
    let threads = record.threads.len().max(1);
    Ok(match name {
        b"" => Entry::Directory(NAMES.iter().map(|name| name.to_vec()).collect()),
        b"exe" => Entry::Link(record.executable.clone()),
        b"root" => Entry::Link(b"/".to_vec()),
        b"cwd" if own => Entry::Link(lock(&task.place).directory.path.clone()),
        b"comm" => Entry::File(format!("{short}\n").into_bytes()),
        b"cmdline" => Entry::File(record.arguments.iter().flat_map(|text| [text, &b"\0"[..]].concat()).collect()),
        b"stat" => {
            let fixed = "0 -1 4194304 0 0 0 0 0 0 0 0 20 0";
            let text = format!(
                "{pid} ({short}) {state} {parent} {group} {session} {fixed} {threads} 0 0 0 0{}\n",
                " 0".repeat(28)
            );
            Entry::File(text.into_bytes())
        }
        b"status" => {
            let who = record.credentials.clone();
            let ids = |ids: Ids| format!("{}\t{}\t{}\t{}", ids.real, ids.effective, ids.saved, ids.effective);
            let groups: Vec<String> = who.groups.iter().map(ToString::to_string).collect();
            let set = |wanted: fn(u64) -> bool| {
                let signals = (1..=64u8).filter(|&signal| wanted(record.actions[usize::from(signal)].handler));
                signals.fold(0, |set, signal| set | Set::one(signal).0)
            };
            let (ignored, caught) = (set(|handler| handler == 1), set(|handler| handler > 1));
            let blocked = record.threads.get(&pid).map_or(0, |thread| thread.blocked.0);
            let (permitted, effective) = (who.permitted.bits(), who.capabilities().bits());
            let text = format!(
                "Name:\t{short}\nState:\t{state}\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\nTracerPid:\t0\n\
                 Uid:\t{}\nGid:\t{}\nGroups:\t{} \nThreads:\t{threads}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n\
                 CapInh:\t{:016x}\nCapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\n",
                ids(who.user),
                ids(who.group),
                groups.join(" "),
                0
            );
            Entry::File(text.into_bytes())
        }
        b"maps" if own => {
            drop(table);
            Entry::File(maps(task))
        }
        // The sandbox's mounts are all there are.
        b"mounts" | b"mountinfo" | b"mountstats" => {
            drop(table);
            Entry::File(own_file(task, name)?)
        }
        b"cgroup" => Entry::File(b"0::/\n".to_vec()),
        b"fd" if own => {
            let numbers = lock(&task.descriptors).numbers();
            Entry::Directory(numbers.into_iter().map(|number| number.to_string().into_bytes()).collect())
        }
        name => {
            drop(table);
            match name.strip_prefix(b"fd/").filter(|_| own) {
                Some(number) => open_file(task, number)?,
                None => return Err(Errno::ENOENT),
            }
        }
    })
}

const NAMES: [&[u8]; 12] = [
    b"cgroup",
    b"cmdline",
    b"comm",
    b"cwd",
    b"exe",
    b"fd",
    b"maps",
    b"mountinfo",
    b"mounts",
    b"mountstats",
    b"stat",
    b"status",
];

/// A file that says the same of the VMM as of any process of the guest.
fn own_file(task: &Task, name: &[u8]) -> Result<Vec<u8>> {
    let directory = task.kernel.own.as_ref().ok_or(Errno::ENOENT)?;
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    let mut text = Vec::new();
    let read = std::fs::File::from(openat2(directory, name, how)?).read_to_end(&mut text);
    read.map(|_| text).map_err(|_| Errno::EIO)
}

fn maps(task: &Task) -> Vec<u8> {
    let memory = lock(&task.memory);
    let mut text = String::new();
    for (start, area) in memory.areas() {
        let letter = |set: bool, letter: char| if set { letter } else { '-' };
        let protection = area.protection;
        let (path, offset) = match &area.source {
            Source::File(file, offset) | Source::SharedFile(file, offset) => {
                (String::from_utf8_lossy(&file.path).into_owned(), *offset)
            }
            _ if area.end == layout::STACK_END => ("[stack]".into(), 0),
            _ if area.end == memory.program_break.1.next_multiple_of(4096) => ("[heap]".into(), 0),
            _ => (String::new(), 0),
        };
        let private = if area.is_private() { 'p' } else { 's' };
        let (read, write) = (letter(protection.read, 'r'), letter(protection.write, 'w'));
        let execute = letter(protection.execute, 'x');
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{start:x}-{:x} {read}{write}{execute}{private} {offset:08x} 00:00 0 {path}", area.end);
    }
    text.into_bytes()
}

/// Opens what was found.
pub fn open(entry: Entry, path: Vec<u8>, flags: OFlag) -> Result<Arc<OpenFile>> {
    let writes = flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR);
    match entry {
        Entry::Open(file) => Ok(file),
        Entry::Link(to) if flags.contains(OFlag::O_PATH) => memory_file(&to, path, Kind::Link),
        Entry::Link(_) => Err(Errno::ELOOP),
        Entry::File(_) | Entry::Directory(_) if writes => Err(Errno::EACCES),
        Entry::File(_) if flags.contains(OFlag::O_DIRECTORY) => Err(Errno::ENOTDIR),
        Entry::File(bytes) => memory_file(&bytes, path, Kind::Plain),
        Entry::Directory(names) => memory_file(&records(&names), path, Kind::Listing),
    }
}

fn memory_file(bytes: &[u8], path: Vec<u8>, kind: Kind) -> Result<Arc<OpenFile>> {
    let fd = memfd_create(c"proc", MFdFlags::MFD_CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).and_then(|()| file.rewind()).map_err(|_| Errno::ENOMEM)?;
    Ok(Arc::new(OpenFile::of(file.into(), path, kind)))
}

/// The entries of a directory as getdents64 gives them.
fn records(names: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = [b".".to_vec(), b"..".to_vec()];
    for (at, name) in all.iter().chain(names).enumerate() {
        let length = (19 + name.len() + 1).next_multiple_of(8);
        let end = bytes.len() + length;
        bytes.extend_from_slice(&(at as u64 + 1).to_le_bytes());
        bytes.extend_from_slice(&(end as u64).to_le_bytes());
        bytes.extend_from_slice(&(length as u16).to_le_bytes());
        bytes.push(libc::DT_UNKNOWN);
        bytes.extend_from_slice(name);
        bytes.resize(end, 0);
    }
    bytes
}

/// How many of these bytes are whole entries.
pub fn whole_records(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = bytes.get(at + 16..at + 18) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        if length == 0 || at + length > bytes.len() {
            break;
        }
        at += length;
    }
    at
}
