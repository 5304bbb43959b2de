//! Fetching an image that a container is to be made of.

use berth_engine::Result;
use berth_images::{PullOptions, Quiet, Store, pull};

/// Fetches an image into the store, for this machine's platform or another one.
pub fn fetch(store: &Store, reference: &str, platform: Option<&str>) -> Result<()> {
    let platform = platform.map(str::parse).transpose()?;
    let options = PullOptions {
        platform,
        ..PullOptions::default()
    };
    pull(store, reference, &options, &Quiet)?;
    Ok(())
}
