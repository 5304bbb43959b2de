//! One container as the commands see it: its record, where its things are, and what it is doing.

use std::path::PathBuf;

use berth_images::Use;
use berth_runtime::monitor::{Phase, Status};
use berth_runtime::sandbox::Sandbox;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::lock;
use crate::names;
use crate::options::{Isolation, Mount, MountSource};
use crate::paths::Roots;
use crate::record::Record;
use crate::status;

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended and will be started again.
    Restarting,
    /// Its process has ended.
    Exited,
}

impl State {
    /// The word people know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        }
    }

    /// Whether a monitor looks after it.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// A container whose record has been read.
#[derive(Debug, Clone)]
pub struct Container {
    /// What was asked for.
    pub record: Record,
    roots: Roots,
}

impl Container {
    /// Finds a container by name, id, or the unambiguous beginning of an id.
    pub fn find(roots: &Roots, reference: &str) -> Result<Self> {
        let id = names::resolve(roots, reference)?;
        Self::load(roots, &id)
    }

    /// Reads the record of an id.
    pub fn load(roots: &Roots, id: &str) -> Result<Self> {
        let record = Record::read(roots, id)?.ok_or_else(|| Error::NotFound(id.to_owned()))?;
        Ok(Self { record, roots: roots.clone() })
    }

    /// All containers, the newest first, and one error for each record that cannot be read.
    pub fn all(roots: &Roots) -> Result<(Vec<Self>, Vec<Error>)> {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for id in names::ids(roots)? {
            match Self::load(roots, &id) {
                Ok(container) => found.push(container),
                // Half made or just removed.
                Err(Error::NotFound(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        found.sort_by_key(|container| std::cmp::Reverse(container.record.created_at));
        Ok((found, errors))
    }

    /// All containers; a record that cannot be read is an error: for whoever removes what no container uses.
    fn all_readable(roots: &Roots) -> Result<Vec<Self>> {
        let (containers, errors) = Self::all(roots)?;
        errors.into_iter().next().map_or(Ok(containers), Err)
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The roots it lives in.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Its directory, which is its bundle.
    pub fn dir(&self) -> PathBuf {
        self.roots.container(self.id())
    }

    /// Its volatile directory.
    pub fn live_dir(&self) -> PathBuf {
        self.roots.live_container(self.id())
    }

    /// Its status. One that claims life while nobody holds the lock (the host was restarted) is corrected.
    pub fn status(&self) -> Result<Status> {
        let said = status::read(&self.roots, self.id())?;
        if matches!(said.phase, Phase::Running | Phase::Restarting) && !lock::is_held(&self.roots, self.id()) {
            // The monitor may have ended between the two looks.
            let again = status::read(&self.roots, self.id())?;
            return Ok(if again == said { status::lost(&said) } else { again });
        }
        Ok(said)
    }

    /// Whether it runs in a microVM of its own.
    pub fn is_microvm(&self) -> bool {
        self.record.options.isolation == Isolation::Microvm
    }

    /// What it is doing; asks the control group whether it is paused.
    pub fn state(&self, status: &Status) -> State {
        match status.phase {
            Phase::Created => State::Created,
            Phase::Restarting => State::Restarting,
            Phase::Exited => State::Exited,
            Phase::Running => match self.sandbox().and_then(|sandbox| Ok(sandbox.is_paused()?)) {
                Ok(true) => State::Paused,
                _ => State::Running,
            },
        }
    }

    /// The sandbox of a running container.
    pub fn sandbox(&self) -> Result<Sandbox> {
        Ok(Sandbox::load(&self.roots.sandboxes(), self.id())?)
    }

    /// The sandbox, if the container runs; otherwise the error says what to do.
    pub fn running_sandbox(&self) -> Result<Sandbox> {
        let status = self.status()?;
        match self.state(&status) {
            State::Running | State::Paused => match Sandbox::load(&self.roots.sandboxes(), self.id()) {
                // It has gone, and its monitor is about to say so.
                Err(berth_runtime::error::Error::NotFound { .. }) => Err(self.not_running(State::Exited)),
                other => Ok(other?),
            },
            state => Err(self.not_running(state)),
        }
    }

    fn not_running(&self, state: State) -> Error {
        Error::NotRunning { name: self.name().to_owned(), state: state.as_str() }
    }

    /// The error for a container in the wrong phase of its life.
    pub fn wrong_state(&self, state: State, advice: &str) -> Error {
        Error::WrongState { name: self.name().to_owned(), state: state.as_str(), advice: advice.to_owned() }
    }
}

/// The names of the containers that have a volume.
pub fn users_of_volume(roots: &Roots, volume: &str) -> Result<Vec<String>> {
    let has = |mount: &Mount| matches!(&mount.source, MountSource::Volume { name: Some(name), .. } if name == volume);
    let users = Container::all_readable(roots)?.into_iter();
    let users = users.filter(|container| container.record.options.mounts.iter().any(has));
    Ok(users.map(|container| container.record.name).collect())
}

/// What containers use of the image store: for whoever removes images.
pub fn image_uses(roots: &Roots) -> Result<Vec<Use>> {
    let records = Container::all_readable(roots)?.into_iter().map(|container| container.record);
    Ok(records.map(|it| Use { user: it.name, manifest: it.image_digest, layers: it.lower_dirs }).collect())
}
