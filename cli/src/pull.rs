//! Fetching an image that a container is to be made of.

use berth_engine::Result;
use berth_images::{Error, Store};

/// Fetches an image into the store.
pub fn fetch(_store: &Store, reference: &str, _platform: Option<&str>) -> Result<()> {
    Err(Error::NotFound {
        reference: reference.to_owned(),
    }
    .into())
}
