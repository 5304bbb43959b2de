//! Removing a container. The record is renamed first, from then on the container does not exist; whatever is cut
//! short after that is finished by the next [`crate::sweep`].

use std::fs;
use std::io;
use std::path::PathBuf;

use berth_runtime::monitor::Status;

use crate::container::{Container, State, short};
use crate::error::{Attempt as _, Error, Result};
use crate::events::{self, Event};
use crate::lifecycle;
use crate::lock::{self, Lock};
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
    let container = match Container::load(roots, &id) {
        Ok(container) => container,
        Err(Error::Damaged { .. }) if force => return remove_damaged(roots, id),
        Err(error) => return Err(error),
    };
    let status = container.status().or_else(|error| {
        if force {
            Ok(Status::default())
        } else {
            Err(error)
        }
    })?;
    let state = container.state(&status);
    if state.is_alive() || lock::is_held(roots, &id) {
        if state.is_alive() && !force {
            let advice = format!(
                "`berth stop {reference}` stops it, `berth rm -f {reference}` removes it as it is"
            );
            return Err(container.wrong_state(state, &advice));
        }
        lifecycle::end(&container)?;
    }
    let Some(lock) = Lock::take(roots, &id)? else {
        return Err(container.wrong_state(
            State::Running,
            "somebody has started it again; stop it first",
        ));
    };
    // With `--rm` the monitor has removed it as it ended.
    if let Some(record) = Record::read(roots, &id)? {
        remove_record(roots, &record, volumes || record.options.remove)?;
    }
    lock.retire(roots, &id)?;
    Ok(id)
}

/// Removes a container whose record cannot be read.
fn remove_damaged(roots: &Roots, id: String) -> Result<String> {
    sweep::delete_sandbox(roots, &id)?;
    let Some(lock) = Lock::take(roots, &id)? else {
        return Err(lock::busy(
            short(&id),
            "being looked after",
            "stop it first",
        ));
    };
    remains(roots, &id)?;
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
    for (name, _) in names::all(roots)
        .into_iter()
        .filter(|(_, holder)| holder == id)
    {
        names::release(roots, &name, id)?;
    }
    if !dir.join(REMOVED).exists() {
        volumes::Store::new(roots.data()).remove_of_container(id)?;
    }
    sweep::remove_path(&dir)
}

/// What the monitor removes when a `--rm` container ends, in this order: the record goes with the directory, last,
/// so that the next sweep can finish the rest.
pub(crate) fn at_exit(roots: &Roots, record: &Record, volumes: &[String]) -> Vec<PathBuf> {
    let store = volumes::Store::new(roots.data());
    let mut paths: Vec<PathBuf> = volumes.iter().map(|name| store.path(name)).collect();
    paths.push(roots.names().join(&record.name));
    paths.push(roots.container(&record.id));
    paths
}
