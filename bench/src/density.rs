//! How many idle instances fit into a budget of memory: one after the other is started, and all stay.

use std::time::Instant;

use crate::document::{Density, DensitySubject};
use crate::error::{Error, Result};
use crate::room::Room;
use crate::targets::{Selection, Target};
use crate::{interrupt, memory};

/// Up to where it goes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is started.
    pub selection: Selection,
    /// Bytes that all instances of a kind may take together.
    pub budget: u64,
    /// The most instances of a kind.
    pub most: usize,
}

/// Measures each kind by itself.
pub fn measure(room: &Room<'_>, options: &Options) -> Result<Density> {
    let targets = options.selection.targets(room)?;
    let count = targets.len();
    let mut subjects = Vec::new();
    for (number, target) in targets.into_iter().enumerate() {
        let begun = number * options.most;
        let filled = fill(room, options, &target, begun, count * options.most);
        room.clear()?;
        subjects.push(filled?);
    }
    Ok(Density { budget: options.budget, most: options.most, subjects })
}

fn fill(room: &Room<'_>, options: &Options, target: &Target, begun: usize, all: usize) -> Result<DensitySubject> {
    let mut subject = DensitySubject {
        name: target.name.clone(),
        kind: target.kind,
        workload: target.workload(),
        reason: target.reason.clone(),
        bytes: Vec::new(),
        budget_reached: false,
        seconds: 0.0,
    };
    let Some(idle) = target.idle().filter(|_| subject.reason.is_none()) else {
        subject.reason.get_or_insert_with(|| "nothing is known that would idle in this module".to_owned());
        return Ok(subject);
    };
    let mut ids = Vec::new();
    for at in 0..options.most {
        interrupt::check()?;
        (room.progress)(&format!("density: {}", target.name), begun + at, all);
        let begin = Instant::now();
        match room.idle(&idle) {
            Ok(id) => ids.push(id),
            Err(Error::Failed { reason, .. }) => {
                subject.reason =
                    Some(if at == 0 { reason } else { format!("instance {} did not start: {reason}", at + 1) });
                return Ok(subject);
            }
            Err(error) => return Err(error),
        }
        subject.seconds += begin.elapsed().as_secs_f64();
        let bytes = memory::of_all(room, &ids)?;
        if bytes > options.budget {
            subject.budget_reached = true;
            return Ok(subject);
        }
        subject.bytes.push(bytes);
    }
    Ok(subject)
}
