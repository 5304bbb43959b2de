//! Where masters keep what their successors have to know.

pub mod etcd;
mod file;
mod rows;

pub use file::FileStore;

use crate::master::{Change, Registry};

/// Why something could not be kept or found.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}: {cause}")]
pub struct Error {
    /// What was attempted, on what.
    attempt: String,
    /// Why it failed.
    cause: String,
}

/// A place that outlives masters.
pub trait Store: Send {
    /// All that was kept. To be called once, before anything else.
    fn load(&mut self) -> Result<Registry, Error>;

    /// Makes changes durable, in this order: after it returned they survive the machine's sudden end; if it does not come
    /// to that, all of them do, or none, or the first. When it fails the master must not go on: nobody knows what is true.
    fn commit(&mut self, changes: &[Change]) -> Result<(), Error>;

    /// Whether this is still the master whose word counts. Asked before anything is said, and several times a second.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Keeps things for as long as the process lives: for tests.
#[derive(Debug, Default)]
pub struct MemoryStore(Registry);

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Registry, Error> {
        Ok(self.0.clone())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Error> {
        changes.iter().cloned().for_each(|change| self.0.apply(change));
        Ok(())
    }
}
