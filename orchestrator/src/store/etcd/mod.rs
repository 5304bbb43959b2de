//! An etcd for several masters, of which one leads at a time.
//!
//! Below a prefix there are
//!
//! ```text
//! election/LEASE    a key for each master that runs, with its address (see `election.rs`)
//! registry/…        what masters remember, in rows
//! commits           written by every transaction of a leader
//! ```
//!
//! A leader writes by transactions that compare two things: that the key by which it leads is there, so a master that was
//! deposed writes nothing; and that `commits` is as its own last transaction has left it. So a transaction whose answer was
//! lost can be tried again, with another member of etcd too: if it was done, the second one is not.

mod client;
mod election;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use client::Credentials;
pub use election::{Candidate, Leadership};

use super::{Error, Store, rows};
use crate::master::{Change, Registry};

/// The most operations in a transaction: etcd's `--max-txn-ops`, unless it was told otherwise.
const MOST_OPERATIONS: usize = 128;
/// The most bytes of keys and values in one: less than etcd's `--max-request-bytes`, which is 1.5 MiB.
const MOST_BYTES: usize = 1 << 20;
/// How long to wait when etcd does not answer.
const PAUSE: Duration = Duration::from_millis(100);
/// How long to try: who can renew its lease, and can write nothing for so long, does not lead.
const PATIENCE: Duration = Duration::from_secs(30);
/// The variable of the environment that has the password of the user whom a location names.
pub const PASSWORD_VARIABLE: &str = "BERTH_ETCD_PASSWORD";
/// How keys begin, unless something else is said.
const PREFIX: &str = "berth";

/// Where an etcd is, and where in it: `etcd://[USER@]ADDRESS:PORT[,ADDRESS:PORT…][/PREFIX]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    endpoints: Vec<SocketAddr>,
    credentials: Option<Credentials>,
    prefix: String,
}

impl Location {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// Whether it names a user, whose password is to be given.
    pub fn needs_password(&self) -> bool {
        self.credentials.is_some()
    }

    /// The same with the password of its user.
    #[must_use]
    pub fn with_password(mut self, password: String) -> Location {
        if let Some(credentials) = &mut self.credentials {
            credentials.password = password;
        }
        self
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        let advice = "give etcd://[USER@]ADDRESS:PORT[,ADDRESS:PORT…][/PREFIX], for example etcd://127.0.0.1:2379";
        let rest = text.strip_prefix("etcd://").ok_or(advice)?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX));
        let (user, endpoints) = authority.split_once('@').map_or((None, authority), |(user, rest)| (Some(user), rest));
        if user.is_some_and(|user| user.is_empty() || user.contains(':')) {
            return Err(format!(
                "a password is not given here, where others see it, but by {PASSWORD_VARIABLE}; {advice}"
            ));
        }
        let endpoints: Result<Vec<SocketAddr>, _> = endpoints.split(',').map(str::parse).collect();
        let endpoints = endpoints.map_err(|_| advice)?;
        if let Some(endpoint) = endpoints.iter().find(|endpoint| !endpoint.ip().is_loopback()) {
            return Err(format!(
                "there is no TLS to etcd, so it has to be at a loopback address, and {endpoint} is none"
            ));
        }
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        let credentials = user.map(|user| Credentials { user: user.to_owned(), password: String::new() });
        Ok(Location { endpoints, credentials, prefix: prefix.to_owned() })
    }
}

/// What the master that leads keeps in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    leadership: Leadership,
    runtime: Handle,
    /// When `commits` was last written.
    last: i64,
}

impl EtcdStore {
    /// The store of a master that leads. It is used from threads that are not those of `runtime`, where etcd is asked.
    pub fn new(leadership: Leadership, runtime: Handle) -> EtcdStore {
        EtcdStore { leadership, runtime, last: 0 }
    }

    async fn read(&mut self) -> Result<Registry, Error> {
        let (term, location) = (&self.leadership.term, &self.leadership.location);
        let failed = |cause: String| Error { attempt: "read the masters' registry".to_owned(), cause };
        let end = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            let (commits, prefix) = (location.key("commits"), location.key("registry/"));
            let read = async { Ok((term.client.get(&commits).await?, term.client.list(&prefix).await?)) };
            let (commits, range) = match read.await {
                Ok(read) => read,
                Err(client::Error::Unreachable(_)) if Instant::now() < end => {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(failed(error.to_string())),
            };
            let mut registry = Registry::default();
            for row in range.rows {
                let change = row.key.strip_prefix(&prefix).and_then(|key| rows::read(key, &row.value));
                registry.apply(change.ok_or_else(|| failed(format!("the row {:?} is damaged", row.key)))?);
            }
            self.last = commits.map_or(0, |row| row.modified);
            return Ok(registry);
        }
    }

    /// Writes rows in one transaction.
    async fn write(&mut self, batch: &Batch) -> Result<(), Error> {
        let (term, location) = (&self.leadership.term, &self.leadership.location);
        let commits = location.key("commits");
        let own = format!("{:x}", term.created);
        let mut operations: Vec<Value> = batch.operations(&location.key("registry/"));
        operations.push(client::put(&commits, &own, None));
        let end = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            let compare = vec![client::was_created(&term.key, term.created), client::was_modified(&commits, self.last)];
            let look = vec![client::read(&term.key), client::read(&commits)];
            match term.client.transact(compare, operations.clone(), look).await {
                Ok(done) if done.succeeded => {
                    self.last = done.revision;
                    return Ok(());
                }
                Ok(done) => {
                    let leads = done.rows.iter().any(|row| row.key == term.key && row.created == term.created);
                    let commits = done.rows.iter().find(|row| row.key == commits && row.value == own);
                    // Nobody else writes that: it was an earlier try, whose answer was lost.
                    let Some(row) = commits.filter(|row| leads && row.modified > self.last) else {
                        return Err(deposed());
                    };
                    self.last = row.modified;
                    return Ok(());
                }
                Err(client::Error::Unreachable(_)) if Instant::now() < end => sleep(PAUSE).await,
                Err(error) => {
                    let attempt = "write to the masters' registry".to_owned();
                    return Err(Error { attempt, cause: error.to_string() });
                }
            }
        }
    }
}

impl Store for EtcdStore {
    fn load(&mut self) -> Result<Registry, Error> {
        self.runtime.clone().block_on(self.read())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Error> {
        let runtime = self.runtime.clone();
        batches(changes).iter().try_for_each(|batch| runtime.block_on(self.write(batch)))
    }

    fn check(&self) -> Result<(), Error> {
        if self.leadership.term.lasts_still() { Ok(()) } else { Err(deposed()) }
    }
}

fn deposed() -> Error {
    let cause = "it was not heard of by etcd in time, or was removed there, so another one may lead; start it again, and \
                 it stands by";
    Error { attempt: "go on as the master that leads".to_owned(), cause: cause.to_owned() }
}

/// What is written at once: the last value of each row, or that it is removed.
#[derive(Debug, Default)]
struct Batch {
    rows: Vec<(String, Option<String>)>,
    /// Where a key is among the rows: a transaction that writes one twice is refused.
    places: HashMap<String, usize>,
    bytes: usize,
}

impl Batch {
    fn operations(&self, prefix: &str) -> Vec<Value> {
        let rows = self.rows.iter().map(|(key, value)| (format!("{prefix}{key}"), value));
        rows.map(|(key, value)| match value {
            Some(value) => client::put(&key, value, None),
            None => client::remove(&key),
        })
        .collect()
    }
}

/// Changes as transactions that etcd takes, in order. What belongs to one change is in one of them.
fn batches(changes: &[Change]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for change in changes {
        let rows = rows::write(change);
        let bytes = rows.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len)).sum::<usize>();
        // One operation is that on `commits`.
        let fits = |batch: &Batch| {
            batch.rows.len() + rows.len() < MOST_OPERATIONS && (batch.bytes + bytes <= MOST_BYTES || batch.bytes == 0)
        };
        if !batches.last().is_some_and(fits) {
            batches.push(Batch::default());
        }
        let Some(batch) = batches.last_mut() else { continue };
        batch.bytes += bytes;
        for (key, value) in rows {
            if let Some(place) = batch.places.get(&key) {
                batch.rows[*place].1 = value;
            } else {
                batch.places.insert(key.clone(), batch.rows.len());
                batch.rows.push((key, value));
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::Weight;
    use crate::master::Admission;

    #[test]
    fn a_location_is_a_url() {
        let location = |text: &str| text.parse::<Location>();
        let one = location("etcd://127.0.0.1:2379").unwrap();
        assert_eq!(one.key("x"), "berth/x");
        let two = location("etcd://127.0.0.1:1,[::1]:2/some/where/").unwrap();
        assert_eq!((two.endpoints.len(), &*two.key("x")), (2, "some/where/x"));
        for wrong in ["", "127.0.0.1:2379", "etcd://", "etcd://127.0.0.1", "etcd://127.0.0.1:1,", "http://127.0.0.1:1"]
        {
            assert!(location(wrong).unwrap_err().contains("etcd://[USER@]ADDRESS:PORT"), "{wrong}");
        }
        assert!(!one.needs_password() && location("etcd://sailor@127.0.0.1:1").unwrap().needs_password());
        assert!(location("etcd://sailor:secret@127.0.0.1:1").unwrap_err().contains("BERTH_ETCD_PASSWORD"));
        let secret = location("etcd://sailor@127.0.0.1:1").unwrap().with_password("ahoy".to_owned());
        assert!(!format!("{secret:?}").contains("ahoy"));
        assert!(location("etcd://10.0.0.1:2379").unwrap_err().contains("loopback"));
    }

    #[test]
    fn changes_are_cut_where_etcd_would_refuse_them() {
        let agent = |number: usize| Change::Agent(format!("a{number}").as_str().into(), Admission::default());
        let many: Vec<Change> = (0..300).map(agent).collect();
        let sizes: Vec<usize> = batches(&many).iter().map(|batch| batch.rows.len()).collect();
        assert_eq!(sizes, [127, 127, 46]);
        let large = |letter: &str| Change::Weight(letter.repeat(MOST_BYTES / 2), Weight::MAX);
        assert_eq!(batches(&[large("a"), large("b"), agent(1)]).len(), 2);
        assert_eq!(batches(&[]).len(), 0);
    }

    #[test]
    fn of_changes_to_one_row_the_last_is_written() {
        let agent = |draining| Change::Agent("a".into(), Admission { draining, ..Admission::default() });
        let batches = batches(&[agent(false), agent(true), Change::Gone("a".into())]);
        let [batch] = &*batches else { panic!("{batches:?}") };
        assert_eq!(batch.rows, [("agent/a".to_owned(), None), ("gone/a".to_owned(), Some("{}".to_owned()))]);
    }
}
