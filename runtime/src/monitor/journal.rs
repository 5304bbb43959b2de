//! What the monitor adds to the event journal that `berth events` shows: one JSON object a line, one write each.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Config;

pub(super) struct Journal {
    path: PathBuf,
    id: String,
    name: String,
    image: String,
}

impl Journal {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            path: config.events.clone(),
            id: config.id.clone(),
            name: config.name.clone(),
            image: config.image.clone(),
        }
    }

    /// Opened each time, since the journal is turned over by rename. A journal that cannot be written stops nothing.
    pub(super) fn write(&self, action: &str, attributes: &Value) {
        let event = json!({
            "time": Timestamp::now(),
            "type": "container",
            "action": action,
            "id": self.id,
            "name": self.name,
            "image": self.image,
            "attributes": attributes,
        });
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let _ = file.and_then(|mut file| file.write_all(format!("{event}\n").as_bytes()));
    }
}
