//! What an agent has to remember: who it is, and its tasks with the updates that were not acknowledged.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use uuid::Uuid;

use super::tasks::{Changes, Recovered, Task};
use crate::master::AgentId;

/// `id` and `instance`.
const AGENT: TableDefinition<&str, &str> = TableDefinition::new("agent");
/// Tasks as JSON, by the names of their sandboxes.
const TASKS: TableDefinition<&str, &[u8]> = TableDefinition::new("tasks");
/// The latest tasks that are over, as JSON, in their order.
const PAST: TableDefinition<u64, &[u8]> = TableDefinition::new("past");
/// How much of a UUID is enough to tell the sandboxes of the agents of one host apart.
const INSTANCE_DIGITS: usize = 8;

/// Why something cannot be remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {path}: {cause}", path = path.display())]
pub struct Error {
    attempt: &'static str,
    path: PathBuf,
    cause: String,
}

/// The file, which is locked while it is open: an agent is there once.
#[derive(Debug)]
pub struct Checkpoints {
    path: PathBuf,
    database: Database,
    instance: String,
}

impl Checkpoints {
    /// Opens what an agent has left in a directory, or begins anew.
    pub fn open(directory: &Path) -> Result<(Checkpoints, Recovered), Error> {
        let path = directory.join("agent.redb");
        let failed = |cause: &dyn Display| Error {
            attempt: "open the agent's checkpoints in",
            path: path.clone(),
            cause: cause.to_string(),
        };
        std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let database = Database::create(&path).map_err(|error| failed(&error))?;
        let mut checkpoints = Checkpoints { path: path.clone(), database, instance: String::new() };
        let recovered = checkpoints.read().map_err(|error| failed(&error))?;
        Ok((checkpoints, recovered))
    }

    /// What names of sandboxes of this agent begin with.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    fn read(&mut self) -> Result<Recovered, redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut agent = transaction.open_table(AGENT)?;
            transaction.open_table(TASKS)?;
            transaction.open_table(PAST)?;
            if agent.get("instance")?.is_none() {
                let digits = &Uuid::new_v4().simple().to_string()[..INSTANCE_DIGITS];
                agent.insert("instance", &*format!("task-{digits}"))?;
            }
        }
        transaction.commit()?;
        let transaction = self.database.begin_read()?;
        let agent = transaction.open_table(AGENT)?;
        let text = |key: &str| Ok::<_, redb::Error>(agent.get(key)?.map(|value| value.value().to_owned()));
        self.instance = text("instance")?.unwrap_or_default();
        let mut tasks = BTreeMap::new();
        for row in transaction.open_table(TASKS)?.iter()? {
            let (name, task) = row?;
            let task: Task = serde_json::from_slice(task.value())
                .map_err(|error| redb::Error::Corrupted(format!("task {}: {error}", name.value())))?;
            tasks.insert(name.value().to_owned(), task);
        }
        let mut past = BTreeMap::new();
        for row in transaction.open_table(PAST)?.iter()? {
            let (number, task) = row?;
            let task = serde_json::from_slice(task.value())
                .map_err(|error| redb::Error::Corrupted(format!("past task {}: {error}", number.value())))?;
            past.insert(number.value(), task);
        }
        Ok(Recovered { id: text("id")?.map(AgentId::from), tasks, past })
    }

    /// Remembers the id.
    pub fn set_id(&mut self, id: &AgentId) -> Result<(), Error> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(AGENT)?.insert("id", id.as_str())?;
            Ok(transaction.commit()?)
        };
        write().map_err(|cause| self.failed(&cause))
    }

    /// Remembers tasks as they are now, and forgets those that are over: all of it or nothing.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), Error> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut tasks = transaction.open_table(TASKS)?;
                for (name, task) in &changes.tasks {
                    match task {
                        Some(task) => {
                            let text = serde_json::to_vec(task).expect("tasks have texts for keys");
                            tasks.insert(&**name, &*text)?;
                        }
                        None => {
                            tasks.remove(&**name)?;
                        }
                    }
                }
                let mut past = transaction.open_table(PAST)?;
                for (number, task) in &changes.past {
                    if let Some(task) = task {
                        let text = serde_json::to_vec(task).expect("tasks have texts for keys");
                        past.insert(number, &*text)?;
                    } else {
                        past.remove(number)?;
                    }
                }
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|cause| self.failed(&cause))
    }

    fn failed(&self, cause: &redb::Error) -> Error {
        Error { attempt: "write the agent's checkpoints to", path: self.path.clone(), cause: cause.to_string() }
    }
}
