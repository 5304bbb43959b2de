//! Removing a container. The record is renamed first, from then on the container does not exist; whatever is cut
//! short after that is finished by the next [`crate::sweep`].

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::container::{Container, State};
use crate::error::{Attempt as _, Error, Result};
use crate::events::{self, Event};
use crate::lifecycle;
use crate::lock::Lock;
use crate::names;
use crate::paths::Roots;
use crate::record::Record;
use crate::sweep;
use crate::volumes;

/// The record of a container that is half removed.
const REMOVED: &str = "removed.json";

/// Removes a container; `force` kills it first, `volumes` removes its anonymous volumes too. Returns its id.
pub fn remove(roots: &Roots, reference: &str, force: bool, volumes: bool) -> Result<String> {
    let id = names::resolve(roots, reference)?;
    let lock = if force {
        lifecycle::end(roots, &id)?
    } else {
        let container = Container::load(roots, &id)?;
        let state = container.state(&container.status()?);
        let alive = |state| {
            let advice = format!("`berth stop {reference}` stops it, `berth rm -f {reference}` removes it as it is");
            container.wrong_state(state, &advice)
        };
        if state.is_alive() {
            return Err(alive(state));
        }
        Lock::take(roots, &id)?.ok_or_else(|| alive(State::Running))?
    };
    match Record::read(roots, &id) {
        Ok(Some(record)) => remove_record(roots, &record, volumes || record.options.remove)?,
        // With `--rm` the monitor has removed it as it ended.
        Ok(None) => {}
        Err(Error::Damaged { .. }) => remains(roots, &id)?,
        Err(error) => return Err(error),
    }
    lock.retire(roots, &id)?;
    Ok(id)
}

/// Removes everything of a container on the data root. The caller holds its lock and nothing of it is alive.
pub(crate) fn remove_record(roots: &Roots, record: &Record, volumes: bool) -> Result<()> {
    let dir = roots.container(&record.id);
    if volumes {
        volumes::Store::new(roots.data()).remove_of_container(&record.id)?;
    }
    match fs::rename(dir.join("container.json"), dir.join(REMOVED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).attempt(|| format!("remove the record in {}", dir.display()));
        }
        _ => {}
    }
    remains(roots, &record.id)?;
    events::append(roots, &Event::of(record, "destroy"))
}

/// Removes what there is of a container without a record: its names, its directory, and the volumes that were made
/// for it if it was never whole.
pub(crate) fn remains(roots: &Roots, id: &str) -> Result<()> {
    let dir = roots.container(id);
    // More than one where a `rename` was cut short.
    for (name, _) in names::all(roots).into_iter().filter(|(_, holder)| holder == id) {
        names::release(roots, &name, id)?;
    }
    if !dir.join(REMOVED).exists() {
        volumes::Store::new(roots.data()).remove_of_container(id)?;
    }
    sweep::remove_path(&dir)
}

/// What the monitor removes when a `--rm` container ends, in this order: the record goes with the directory, last,
/// so that the next sweep can finish the rest.
pub(crate) fn at_exit(roots: &Roots, record: &Record) -> Vec<PathBuf> {
    let store = volumes::Store::new(roots.data());
    let mut paths: Vec<PathBuf> = record.anonymous_volumes.iter().map(|name| store.path(name)).collect();
    paths.push(roots.names().join(&record.name));
    paths.push(roots.container(&record.id));
    paths
}
