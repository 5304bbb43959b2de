//! Where the job framework keeps what its successor has to know: a database in one file, locked while it is open.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::manifest::Name;
use super::scheduler::{Changes, Recovered};
use super::state::TaskKey;

/// One row, as JSON.
const OWN: TableDefinition<&str, &[u8]> = TableDefinition::new("framework");
/// Jobs as JSON, by name.
const JOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("jobs");
/// Tasks as JSON, by job, kind and number.
const TASKS: TableDefinition<(&str, &str, u32), &[u8]> = TableDefinition::new("tasks");

/// Why something cannot be remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {path}: {cause}", path = path.display())]
pub struct Error {
    attempt: &'static str,
    path: PathBuf,
    cause: String,
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
}

impl Store {
    /// Opens what a job framework has left in a directory, or begins anew.
    pub fn open(directory: &Path) -> Result<(Store, Recovered), Error> {
        let path = directory.join("jobs.redb");
        let failed =
            |cause: &dyn Display| Error { attempt: "open the jobs in", path: path.clone(), cause: cause.to_string() };
        std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let database = Database::create(&path).map_err(|error| failed(&error))?;
        let store = Store { path: path.clone(), database };
        let recovered = store.read().map_err(|error| failed(&error))?;
        Ok((store, recovered))
    }

    fn read(&self) -> Result<Recovered, redb::Error> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(OWN)?;
        transaction.open_table(JOBS)?;
        transaction.open_table(TASKS)?;
        transaction.commit()?;
        let transaction = self.database.begin_read()?;
        let mut recovered = Recovered::default();
        if let Some(own) = transaction.open_table(OWN)?.get("own")? {
            recovered.own = json(own.value(), "own")?;
        }
        for row in transaction.open_table(JOBS)?.iter()? {
            let (name, job) = row?;
            recovered.jobs.insert(self::name(name.value())?, json(job.value(), name.value())?);
        }
        for row in transaction.open_table(TASKS)?.iter()? {
            let (key, task) = row?;
            let (job, group, index) = key.value();
            let key = TaskKey { job: name(job)?, group: name(group)?, index };
            recovered.tasks.insert(key, json(task.value(), job)?);
        }
        Ok(recovered)
    }

    /// Makes changes durable: all of them or none.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), Error> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                if let Some(own) = &changes.own {
                    transaction.open_table(OWN)?.insert("own", &*text(own))?;
                }
                let mut jobs = transaction.open_table(JOBS)?;
                for (name, job) in &changes.jobs {
                    match job {
                        Some(job) => drop(jobs.insert(&**name, &*text(job))?),
                        None => drop(jobs.remove(&**name)?),
                    }
                }
                let mut tasks = transaction.open_table(TASKS)?;
                for (TaskKey { job, group, index }, task) in &changes.tasks {
                    let key = (&**job, &**group, *index);
                    match task {
                        Some(task) => drop(tasks.insert(key, &*text(task))?),
                        None => drop(tasks.remove(key)?),
                    }
                }
            }
            Ok(transaction.commit()?)
        };
        let failed = |cause: redb::Error| Error {
            attempt: "write the jobs to",
            path: self.path.clone(),
            cause: cause.to_string(),
        };
        write().map_err(failed)
    }
}

fn text<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is kept has texts for keys")
}

fn json<T: DeserializeOwned>(text: &[u8], row: &str) -> Result<T, redb::Error> {
    serde_json::from_slice(text).map_err(|error| redb::Error::Corrupted(format!("the row {row}: {error}")))
}

fn name(text: &str) -> Result<Name, redb::Error> {
    Name::try_from(text.to_owned()).map_err(|error| redb::Error::Corrupted(format!("the name {text}: {error}")))
}
