//! The order in which layers are unpacked: several at once, taken from the lowest up. A layer that needs one below
//! waits at a gate, a pipe that says when all below are complete. As they are taken in order, the layers waited for are
//! always being worked on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Which layers are taken, complete, or failed. Layers are numbered from the lowest.
pub struct Schedule {
    count: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The next layer to be taken.
    next: usize,
    /// All layers below this one are complete.
    frontier: usize,
    complete: BTreeSet<usize>,
    /// The ends that open the gates of layers being worked on.
    gates: BTreeMap<usize, Gate>,
    error: Option<Error>,
}

/// The store's ends of a pipe. It keeps the other one, too: a layer that did not wait may be gone, and writing to a pipe
/// that nobody reads would end this process by a signal.
struct Gate {
    open: PipeWriter,
    _wait: PipeReader,
}

/// A layer to be unpacked.
pub struct Turn {
    pub index: usize,
    /// Gives one byte when the layers below are complete, end of file if one failed; `None`: they are.
    pub gate: Option<File>,
}

impl Schedule {
    pub fn new(count: usize) -> Self {
        Self { count, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next layer; `None` when there is none, or one has failed.
    pub fn next(&self) -> Option<Turn> {
        let mut state = self.state();
        let index = state.next;
        if state.error.is_some() || index == self.count {
            return None;
        }
        state.next += 1;
        if index <= state.frontier {
            return Some(Turn { index, gate: None });
        }
        match std::io::pipe().and_then(|(wait, open)| Ok((wait.try_clone()?, wait, open))) {
            Ok((wait, kept, open)) => {
                state.gates.insert(index, Gate { open, _wait: kept });
                let gate = Some(OwnedFd::from(wait).into());
                Some(Turn { index, gate })
            }
            Err(error) => {
                state.fail(Error::io("create", "a pipe")(error));
                None
            }
        }
    }

    /// A layer is done.
    pub fn done(&self, index: usize, result: Result<()>) {
        let mut state = self.state();
        match result {
            Ok(()) => state.completed(index),
            Err(error) => state.fail(error),
        }
    }

    /// The first failure, if there was one.
    pub fn result(self) -> Result<()> {
        let state = self.state.into_inner();
        let error = state.unwrap_or_else(PoisonError::into_inner).error;
        error.map_or(Ok(()), Err)
    }
}

impl State {
    fn completed(&mut self, index: usize) {
        self.complete.insert(index);
        while self.complete.contains(&self.frontier) {
            self.frontier += 1;
        }
        while let Some(gate) = self.gates.first_entry() {
            if *gate.key() > self.frontier {
                break;
            }
            // One byte always fits.
            let _ = gate.remove().open.write(&[1]);
        }
    }

    /// Closes the gates: whoever waits fails too, but that is not the reason to tell.
    fn fail(&mut self, error: Error) {
        self.gates.clear();
        self.error.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn gates_open_when_everything_below_is_complete() {
        let schedule = Schedule::new(3);
        let turns: Vec<_> = std::iter::from_fn(|| schedule.next()).collect();
        assert!(turns[0].gate.is_none());
        schedule.done(1, Ok(()));
        schedule.done(0, Ok(()));
        for turn in &turns[1..] {
            let mut byte = [0];
            turn.gate.as_ref().unwrap().read_exact(&mut byte).unwrap();
            assert_eq!(byte, [1]);
        }
        schedule.done(2, Ok(()));
        assert!(schedule.result().is_ok());
    }

    #[test]
    fn a_failure_closes_the_gates() {
        let schedule = Schedule::new(3);
        let (first, second) = (schedule.next().unwrap(), schedule.next().unwrap());
        schedule.done(first.index, Err(Error::invalid("the layer", "of a test")));
        assert_eq!(second.gate.unwrap().read(&mut [0]).unwrap(), 0);
        assert!(schedule.next().is_none());
        assert!(schedule.result().is_err());
    }
}
