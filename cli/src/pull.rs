//! Fetching an image that a container is to be made of.

use berth_engine::Result;
use berth_images::{PullOptions, Store};

use crate::progress::Bars;

/// Fetches an image into the store.
pub fn fetch(store: &Store, reference: &str, platform: Option<&str>) -> Result<()> {
    let options = PullOptions { platform: platform.map(str::parse).transpose()?, ..PullOptions::default() };
    berth_images::pull(store, reference, &options, &Bars::default())?;
    Ok(())
}
