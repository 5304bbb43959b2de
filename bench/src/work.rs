//! What work costs inside, beside what it costs on the host: the same static program, `berth-work`, in each kind of isolation, from
//! an image that holds nothing else. It measures itself with its own clock, so that no start is in the figures.

use std::fs;
use std::process::Command;

use crate::document::{Figure, Kind, Work, WorkSubject};
use crate::error::{Error, Result};
use crate::room::Room;
use crate::statistics::Summary;
use crate::targets::{self, Selection};
use crate::{interrupt, timed};

/// The loop of `berth-work cpu` as a module.
const CPU: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cpu.wasm"));
/// Turns of that loop.
const TURNS: f64 = 50_000_000.0;
/// What one turn of it takes is called so by `berth-work` too.
const TURN: (&str, &str) = ("loop", "ns/turn");

/// What kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// A system call that does nothing.
    Syscall,
    /// A loop.
    Cpu,
    /// Files of the root filesystem.
    Io,
    /// TCP over the loopback interface.
    Net,
}

impl WorkKind {
    /// The argument of `berth-work`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscall => "syscall",
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Net => "net",
        }
    }
}

/// Measures in turns, `rounds` times each.
pub fn measure(room: &Room<'_>, kind: WorkKind, selection: &Selection, rounds: usize) -> Result<Work> {
    (room.progress)("preparing", 0, 1);
    let image = room.work_image()?;
    let mut kinds = vec![Kind::Native];
    kinds.extend(selection.kinds());
    if selection.has(berth_engine::options::Isolation::Wasm) {
        kinds.push(Kind::Wasm);
    }
    let mut subjects: Vec<_> = kinds.into_iter().map(subject).collect();
    let mut module = String::new();
    if let Some(wasm) = subjects.iter_mut().find(|subject| subject.kind == Kind::Wasm) {
        match kind {
            WorkKind::Cpu => module = room.module("cpu", CPU)?,
            WorkKind::Syscall => wasm.reason = Some("a module makes no system calls, it calls its host".to_owned()),
            WorkKind::Io => wasm.reason = Some("a module has no root filesystem".to_owned()),
            WorkKind::Net => wasm.reason = Some("a module has no network of its own".to_owned()),
        }
    }
    let count = subjects.len();
    for round in 0..rounds {
        for turn in 0..count {
            let subject = &mut subjects[(turn + round) % count];
            interrupt::check()?;
            if subject.reason.is_some() {
                continue;
            }
            let (at, all) = (round * count + turn, rounds * count);
            (room.progress)(&format!("{}: {}", kind.name(), subject.name), at, all);
            match once(room, kind, subject.kind, &image, &module) {
                Ok(figures) => subject.add(figures),
                Err(Error::Failed { reason, .. }) => {
                    subject.figures.clear();
                    subject.reason = Some(reason);
                }
                Err(error) => return Err(error),
            }
        }
    }
    interrupt::check()?;
    for figure in subjects.iter_mut().flat_map(|subject| &mut subject.figures) {
        figure.summary = Summary::of(figure.values.iter().copied());
    }
    Ok(Work { name: kind.name().to_owned(), rounds, subjects })
}

fn subject(kind: Kind) -> WorkSubject {
    WorkSubject { name: targets::name(kind).to_owned(), kind, reason: None, figures: Vec::new() }
}

impl WorkSubject {
    /// Adds the values of one round.
    fn add(&mut self, figures: Vec<Figure>) {
        for figure in figures {
            match self.figures.iter_mut().find(|known| known.name == figure.name) {
                Some(known) => known.values.extend(figure.values),
                None => self.figures.push(figure),
            }
        }
    }
}

/// One run of the work.
fn once(room: &Room<'_>, work: WorkKind, kind: Kind, image: &str, module: &str) -> Result<Vec<Figure>> {
    let mut command = match kind {
        Kind::Native => {
            // The file system that containers write to as well.
            let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(room.roots.data());
            let directory = directory.map_err(Error::file("make a folder in", room.roots.data()))?;
            let mut command = Command::new(room.program("berth-work"));
            command.current_dir(directory.path()).arg(work.name());
            let figures = timed::run(command, false).and_then(|timed| parse(&String::from_utf8_lossy(&timed.output)));
            fs::remove_dir_all(directory.path()).map_err(Error::file("remove", directory.path()))?;
            return figures;
        }
        _ => room.berth(&["run", "--rm", "--pull", "never"]),
    };
    command.args(targets::flags(kind));
    if kind == Kind::Wasm {
        command.arg(module);
        let output = timed::run(command, false)?.output;
        let nanoseconds = output.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let nanoseconds = nanoseconds.ok_or_else(|| nonsense(&format!("{} bytes", output.len())))?;
        return Ok(vec![figure(TURN.0, TURN.1, false, nanoseconds as f64 / TURNS)]);
    }
    command.args([image, "/berth-work", work.name()]);
    parse(&String::from_utf8_lossy(&timed::run(command, false)?.output))
}

/// What `berth-work` prints: a line for each figure, `name unit more|less value`.
fn parse(text: &str) -> Result<Vec<Figure>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        let [name, unit, better @ ("more" | "less"), value] = words[..] else { return Err(nonsense(line)) };
        let value = value.parse().map_err(|_| nonsense(line))?;
        Ok(figure(name, unit, better == "more", value))
    };
    text.lines().map(line).collect()
}

fn figure(name: &str, unit: &str, more_is_better: bool, value: f64) -> Figure {
    Figure { name: name.to_owned(), unit: unit.to_owned(), more_is_better, values: vec![value], summary: None }
}

fn nonsense(what: &str) -> Error {
    Error::Invalid(format!("berth-work answers something else than figures: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_nonsense_is_not() {
        let figures = parse("write\tMiB/s\tmore\t12.5\nnull call\tns\tless\t80\n").unwrap();
        assert_eq!((figures[0].values[0], figures[0].more_is_better), (12.5, true));
        assert_eq!((figures[1].name.as_str(), figures[1].unit.as_str()), ("null call", "ns"));
        for text in ["x", "a\tb\tc\t1", "a\tb\tmore\tx"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
