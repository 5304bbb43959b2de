//! The monitor: the process that looks after one container, from its creation to its removal.

mod config;

pub use config::{Config, Phase, RestartPolicy, STOP_REQUESTED, Status};
