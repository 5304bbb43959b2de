//! How long starts take. All subjects take turns in each round, and the order turns with the rounds: a busy moment of the host
//! meets them all, and nobody always follows the same neighbour.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::document::{Kind, Run, Startup, StartupSubject, Throughput};
use crate::error::{Error, Result};
use crate::peers::{Peer, Peers};
use crate::room::Room;
use crate::targets::{Selection, Target};
use crate::{interrupt, memory, spans, timed};

/// What is asked of the kernel to forget clean pages and names (`proc_sys_vm(5)`).
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// How starts are measured.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is started.
    pub selection: Selection,
    /// How often each.
    pub runs: usize,
    /// How often before that, uncounted.
    pub warm_up: usize,
    /// How many at once, after that; none: not measured.
    pub parallel: Option<usize>,
    /// Whether what else is installed is measured too.
    pub peers: bool,
    /// Whether each run is to find caches empty.
    pub cold: bool,
}

/// What is measured, and how it is started.
struct Subject {
    said: StartupSubject,
    target: Option<Target>,
    peer: Option<Peer>,
}

/// Measures starts.
pub fn measure(room: &Room<'_>, options: &Options) -> Result<Startup> {
    (room.progress)("preparing", 0, 1);
    let targets = options.selection.targets(room)?;
    let peers = if options.peers { Some(Peers::prepare(room, &targets)?) } else { None };
    let mut subjects: Vec<_> = targets.iter().cloned().map(Subject::target).collect();
    subjects.extend(peers.iter().flat_map(Peers::all).map(Subject::peer));
    let mut cold_note = None;
    if options.cold {
        cold_note = drop_caches().err();
    }
    let warm_up = if options.cold { 1 } else { options.warm_up.max(1) };
    for round in 0..warm_up {
        turn(room, &mut subjects, "warming up", (round, warm_up), |room, subject| subject.run(room).map(drop))?;
    }
    for round in 0..options.runs {
        let number = round + 1;
        turn(room, &mut subjects, &format!("run {number}"), (round, options.runs), |room, subject| {
            if options.cold {
                subject.forget(room)?;
                let _ = drop_caches();
            }
            let run = subject.run(room)?;
            subject.said.runs.push(run);
            Ok(())
        })?;
    }
    turn(room, &mut subjects, "memory", (0, 1), |room, subject| subject.weigh(room))?;
    if let Some(parallel) = options.parallel {
        turn(room, &mut subjects, "at once", (0, 1), |room, subject| subject.crowd(room, parallel, options.runs))?;
    }
    let subjects = subjects.into_iter().map(Subject::finish).collect();
    Ok(Startup { cold: options.cold, cold_note, runs: options.runs, subjects })
}

/// Does something with each subject in turn. One that fails is out, with the reason; an interruption ends all.
fn turn(
    room: &Room<'_>,
    subjects: &mut [Subject],
    what: &str,
    (round, rounds): (usize, usize),
    mut act: impl FnMut(&Room<'_>, &mut Subject) -> Result<()>,
) -> Result<()> {
    let count = subjects.len();
    for turn in 0..count {
        let subject = &mut subjects[(turn + round) % count];
        interrupt::check()?;
        if subject.said.reason.is_some() {
            continue;
        }
        (room.progress)(&format!("{what}: {}", subject.said.name), round * count + turn, rounds * count);
        match act(room, subject) {
            Ok(()) => {}
            Err(Error::Failed { reason, .. }) => {
                subject.said.reason = Some(reason);
                subject.said.runs.clear();
            }
            Err(error) => return Err(error),
        }
    }
    interrupt::check()
}

impl Subject {
    fn target(target: Target) -> Self {
        let said = StartupSubject {
            name: target.name.clone(),
            kind: target.kind,
            workload: target.workload(),
            beside: None,
            reason: target.reason.clone(),
            runs: Vec::new(),
            summary: None,
            memory: None,
            throughput: None,
        };
        Self { said, target: Some(target), peer: None }
    }

    fn peer(peer: Peer) -> Self {
        let said = StartupSubject {
            name: peer.name.to_owned(),
            kind: Kind::Peer,
            workload: peer.workload.clone(),
            beside: peer.beside.clone(),
            reason: peer.command.as_ref().err().cloned(),
            runs: Vec::new(),
            summary: None,
            memory: None,
            throughput: None,
        };
        Self { said, target: None, peer: Some(peer) }
    }

    fn run(&self, room: &Room<'_>) -> Result<Run> {
        let timed = match (&self.target, &self.peer) {
            (Some(target), _) => timed::run(target.start(room), true)?,
            (None, Some(peer)) => peer.run()?,
            (None, None) => return Err(Error::Invalid("there is nothing to run".to_owned())),
        };
        let since = |time: u64| time - timed.request;
        let first_instruction = spans::first_instruction(&timed.moments).map(since);
        if self.target.is_some() && first_instruction.is_none() {
            let command = self.said.workload.clone();
            let reason =
                "no moment of its first instruction was told; are all of berth's programs of one build?".to_owned();
            return Err(Error::Failed { command, reason });
        }
        let phases = match &self.target {
            Some(_) => spans::phases(timed.request, &timed.moments, timed.exit),
            None => BTreeMap::default(),
        };
        Ok(Run { first_instruction, first_output: timed.first_output.map(since), exit: since(timed.exit), phases })
    }

    /// Removes what earlier runs have left that speeds up later ones.
    fn forget(&self, room: &Room<'_>) -> Result<()> {
        if let Some(target) = self.target.as_ref().filter(|target| target.kind == Kind::Wasm) {
            let store = room.store()?;
            store.remove_code(&store.resolve(&target.image)?)?;
        }
        Ok(())
    }

    /// Measures the memory of an idle instance. That one cannot be had says nothing against the starts.
    fn weigh(&mut self, room: &Room<'_>) -> Result<()> {
        let Some(idle) = self.target.as_ref().and_then(Target::idle) else { return Ok(()) };
        let weighed = room.idle(&idle).and_then(|id| memory::of(room, &id));
        room.clear()?;
        match weighed {
            Ok(memory) => self.said.memory = Some(memory),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(_) => {}
        }
        Ok(())
    }

    /// Starts `count`, `parallel` of them at once.
    fn crowd(&mut self, room: &Room<'_>, parallel: usize, count: usize) -> Result<()> {
        let Some(target) = &self.target else { return Ok(()) };
        let starts = count.max(parallel);
        let commands: Vec<Vec<Command>> = (0..parallel)
            .map(|worker| (0..starts).filter(|at| at % parallel == worker).map(|_| target.start(room)).collect())
            .collect();
        let begin = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let work = |commands: Vec<Command>| -> Result<()> {
                for command in commands {
                    interrupt::check()?;
                    timed::run(command, false)?;
                }
                Ok(())
            };
            let workers: Vec<_> = commands.into_iter().map(|some| scope.spawn(move || work(some))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Err(Error::Interrupted)))
        })?;
        self.said.throughput = Some(Throughput { parallel, starts, seconds: begin.elapsed().as_secs_f64() });
        Ok(())
    }

    fn finish(mut self) -> StartupSubject {
        self.said.sum_up();
        self.said
    }
}

/// Empties the page cache, as far as it is clean; the error for a person.
fn drop_caches() -> Result<(), String> {
    rustix::fs::sync();
    fs::write(DROP_CACHES, "3")
        .map_err(|error| format!("the page cache was kept: cannot write to {DROP_CACHES}: {error}"))
}
