//! What an agent has to remember: who it is, its executors, and its tasks with the updates that were not acknowledged.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use redb::{Database, ReadableDatabase as _, ReadableTable, Table, TableDefinition};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::tasks::{Changes, Recovered};
use crate::master::AgentId;

/// `id` and `instance`, and what executors know of it: `endpoint` and `secret`.
const AGENT: TableDefinition<&str, &str> = TableDefinition::new("agent");
/// Tasks as JSON, by the names of their sandboxes.
const TASKS: TableDefinition<&str, &[u8]> = TableDefinition::new("tasks");
/// The same of executors.
const EXECUTORS: TableDefinition<&str, &[u8]> = TableDefinition::new("executors");
/// The latest tasks that are over, as JSON, in their order.
const PAST: TableDefinition<u64, &[u8]> = TableDefinition::new("past");
/// How many random bytes a secret has.
const SECRET: usize = 32;
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
    endpoint: Option<SocketAddr>,
    secret: Vec<u8>,
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
        fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let database = Database::create(&path).map_err(|error| failed(&error))?;
        // There are secrets in it.
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|error| failed(&error))?;
        let (instance, endpoint, secret) = (String::new(), None, Vec::new());
        let mut checkpoints = Checkpoints { path: path.clone(), database, instance, endpoint, secret };
        let recovered = checkpoints.read().map_err(|error| failed(&error))?;
        Ok((checkpoints, recovered))
    }

    /// What names of sandboxes of this agent begin with.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Where executors reach the agent, if that was ever said.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// What tokens of executors are made with.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    fn read(&mut self) -> Result<Recovered, redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut agent = transaction.open_table(AGENT)?;
            transaction.open_table(TASKS)?;
            transaction.open_table(EXECUTORS)?;
            transaction.open_table(PAST)?;
            if agent.get("instance")?.is_none() {
                let digits = &Uuid::new_v4().simple().to_string()[..INSTANCE_DIGITS];
                agent.insert("instance", &*format!("task-{digits}"))?;
            }
            if agent.get("secret")?.is_none() {
                let mut secret = [0; SECRET];
                SystemRandom::new()
                    .fill(&mut secret)
                    .map_err(|_| io::Error::other("the system has no random bytes"))?;
                agent.insert("secret", &*BASE64_STANDARD.encode(secret))?;
            }
        }
        transaction.commit()?;
        let transaction = self.database.begin_read()?;
        let agent = transaction.open_table(AGENT)?;
        let text = |key: &str| Ok::<_, redb::Error>(agent.get(key)?.map(|value| value.value().to_owned()));
        self.instance = text("instance")?.unwrap_or_default();
        self.endpoint = text("endpoint")?.and_then(|endpoint| endpoint.parse().ok());
        let secret = BASE64_STANDARD.decode(text("secret")?.unwrap_or_default());
        self.secret = secret.map_err(|error| redb::Error::Corrupted(format!("secret: {error}")))?;
        let tasks = by_name(&transaction.open_table(TASKS)?, "task")?;
        let executors = by_name(&transaction.open_table(EXECUTORS)?, "executor")?;
        let mut past = BTreeMap::new();
        for row in transaction.open_table(PAST)?.iter()? {
            let (number, task) = row?;
            let task = serde_json::from_slice(task.value())
                .map_err(|error| redb::Error::Corrupted(format!("past task {}: {error}", number.value())))?;
            past.insert(number.value(), task);
        }
        Ok(Recovered { id: text("id")?.map(AgentId::from), tasks, executors, past })
    }

    /// Remembers the id.
    pub fn set_id(&mut self, id: &AgentId) -> Result<(), Error> {
        self.set("id", id.as_str())
    }

    /// Remembers where executors reach the agent.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr) -> Result<(), Error> {
        self.endpoint = Some(endpoint);
        self.set("endpoint", &endpoint.to_string())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(AGENT)?.insert(key, value)?;
            Ok(transaction.commit()?)
        };
        write().map_err(|cause| self.failed(&cause))
    }

    /// Remembers tasks as they are now, and forgets those that are over: all of it or nothing.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), Error> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                write_by_name(&mut transaction.open_table(TASKS)?, &changes.tasks)?;
                write_by_name(&mut transaction.open_table(EXECUTORS)?, &changes.executors)?;
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

fn by_name<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    kind: &str,
) -> Result<BTreeMap<String, T>, redb::Error> {
    let mut all = BTreeMap::new();
    for row in table.iter()? {
        let (name, text) = row?;
        let one = serde_json::from_slice(text.value());
        let one = one.map_err(|error| redb::Error::Corrupted(format!("{kind} {}: {error}", name.value())))?;
        all.insert(name.value().to_owned(), one);
    }
    Ok(all)
}

fn write_by_name<T: Serialize>(
    table: &mut Table<&'static str, &'static [u8]>,
    changes: &[(String, Option<&T>)],
) -> Result<(), redb::Error> {
    for (name, one) in changes {
        if let Some(one) = one {
            let text = serde_json::to_vec(one).expect("what is remembered has texts for keys");
            table.insert(&**name, &*text)?;
        } else {
            table.remove(&**name)?;
        }
    }
    Ok(())
}
