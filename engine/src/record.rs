//! The record of one container, `container.json`.

use std::fs::File;
use std::path::PathBuf;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::id::short;
use crate::names;
use crate::options::Options;
use crate::paths::Roots;
use crate::volumes;

/// What is kept of a container from its creation to its removal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The name, unique on this data root.
    pub name: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// The image as the person named it.
    pub image: String,
    /// Digest of the image's manifest, `sha256:…`: what garbage collection must keep.
    pub image_digest: String,
    /// Digest of the image's configuration (its id), `sha256:…`.
    pub image_id: String,
    /// The layer directories, topmost first.
    pub lower_dirs: Vec<PathBuf>,
    /// The command line after entry point and command were combined.
    pub args: Vec<String>,
    /// The volumes that were made for it and go with it.
    #[serde(default)]
    pub anonymous_volumes: Vec<String>,
    /// What was asked for, completed by what the image says: its stop signal, its volumes, and a name for each volume.
    pub options: Options,
}

impl Record {
    /// Reads the record of an id; `None` where there is no such container. What becomes a path is known to be a name.
    pub fn read(roots: &Roots, id: &str) -> Result<Option<Self>> {
        let path = roots.container(id).join("container.json");
        let advice = format!("`berth rm -f {}` removes the container", short(id));
        let Some(record) = document::read::<Self>(&path, &advice)? else { return Ok(None) };
        let reason = if record.id != id {
            "its id is another container's".to_owned()
        } else if let Err(error) = names::check(&record.name) {
            error.to_string()
        } else if let Some(error) = record.anonymous_volumes.iter().find_map(|name| volumes::check_name(name).err()) {
            error.to_string()
        } else {
            return Ok(Some(record));
        };
        Err(Error::Damaged { path, reason, advice })
    }

    /// Writes the record: from here on the container exists.
    pub fn write(&self, roots: &Roots) -> Result<()> {
        document::write(&roots.container(&self.id).join("container.json"), self)
    }

    /// Changes the record while no other command does.
    pub fn change(roots: &Roots, id: &str, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<Self> {
        let dir = roots.container(id);
        let attempt = || format!("lock {}", dir.display());
        let directory = File::open(&dir).attempt(attempt)?;
        flock(&directory, FlockOperation::LockExclusive).attempt(attempt)?;
        let mut record = Self::read(roots, id)?.ok_or_else(|| Error::NotFound(id.to_owned()))?;
        change(&mut record)?;
        record.write(roots)?;
        Ok(record)
    }
}
