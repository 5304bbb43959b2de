//! Giving images further names.

use super::{IndexEntry, Store, index};
use crate::error::{Error, Result};
use crate::reference::Reference;

impl Store {
    /// Gives the image `source` the name `target`, taking it from the image that has it now.
    pub fn tag(&self, source: &str, target: &str) -> Result<()> {
        let target: Reference = target.parse()?;
        if target.digest().is_some() {
            let reason = "an image cannot be given a digest, only a name and a tag";
            return Err(Error::InvalidReference { text: target.familiar(), reason });
        }
        self.update_entries(|entries| {
            let entry = self.find(entries, source)?.clone();
            index::insert(entries, IndexEntry { reference: Some(target), ..entry });
            Ok(())
        })
    }
}
