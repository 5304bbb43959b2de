//! A database in one file, for one master. It is locked while it is open, so that there is only one.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Error, Store, rows};
use crate::master::{Change, Registry};

const REGISTRY: TableDefinition<&str, &str> = TableDefinition::new("registry");

/// The database.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    database: Database,
}

impl FileStore {
    /// Opens a database, or makes it.
    pub fn open(path: &Path) -> Result<FileStore, Error> {
        let database = Database::create(path);
        let database = database.map_err(|cause| failed("open the master's database", path, cause))?;
        Ok(FileStore { path: path.to_owned(), database })
    }

    fn read(&self) -> Result<Registry, redb::Error> {
        let mut registry = Registry::default();
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(REGISTRY) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(registry),
            table => table?,
        };
        for row in table.iter()? {
            let (key, value) = row?;
            let change = rows::read(key.value(), value.value());
            registry.apply(change.ok_or_else(|| redb::Error::Corrupted(format!("the row {:?}", key.value())))?);
        }
        Ok(registry)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(REGISTRY)?;
            for change in changes {
                for (key, value) in rows::write(change) {
                    match value {
                        Some(value) => drop(table.insert(&*key, &*value)?),
                        None => drop(table.remove(&*key)?),
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn failed(attempt: &str, path: &Path, cause: impl Display) -> Error {
    Error { attempt: format!("{attempt} {}", path.display()), cause: cause.to_string() }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Registry, Error> {
        self.read().map_err(|cause| failed("read the master's database", &self.path, cause))
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), Error> {
        self.write(changes).map_err(|cause| failed("write to the master's database", &self.path, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::{Quota, Weight};
    use crate::master::Admission;
    use crate::resources::Quantities;
    use crate::tls::{JoinToken, TokenId};

    #[test]
    fn what_was_committed_is_there_when_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry");
        let quota = Quota { guarantee: Quantities::new(1, 2), ..Quota::default() };
        let token = |id: &str| id.repeat(16).parse::<TokenId>().unwrap();
        let kept = r#"{"hash": HASH, "expires": 7, "uses": 2}"#.replace("HASH", &format!("{:?}", [1; 32]));
        let kept: JoinToken = serde_json::from_str(&kept).unwrap();
        let changes = vec![
            Change::Agent("a/1".into(), Admission { draining: true, ..Admission::default() }),
            Change::Agent("b".into(), Admission::default()),
            Change::Gone("b".into()),
            Change::Weight("r".to_owned(), Weight::from_thousandths(1500).unwrap()),
            Change::Weight("s".to_owned(), Weight::MAX),
            Change::Weight("s".to_owned(), Weight::ONE),
            Change::Quota("q".to_owned(), quota),
            Change::Token(token("a"), kept.clone()),
            Change::Token(token("b"), kept),
            Change::TokenGone(token("a")),
        ];
        let mut expected = Registry::default();
        changes.iter().cloned().for_each(|change| expected.apply(change));

        let mut store = FileStore::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Registry::default());
        store.commit(&changes).unwrap();
        assert!(FileStore::open(&path).unwrap_err().to_string().contains("registry"), "one master at a time");
        drop(store);
        assert_eq!(FileStore::open(&path).unwrap().load().unwrap(), expected);
    }
}
