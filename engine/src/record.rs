//! The record of one container, `container.json`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::options::Options;

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
    /// What was asked for.
    pub options: Options,
}
