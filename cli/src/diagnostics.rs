//! What the libraries have to say besides errors: warnings on standard error, and more with `BERTH_LOG`.

use std::env;
use std::io;

use tracing::level_filters::LevelFilter;

/// `error`, `warn`, `info`, `debug`, `trace` or `off`.
const VARIABLE: &str = "BERTH_LOG";

/// Shows what the libraries say from here on.
pub fn init() {
    let wanted = env::var(VARIABLE).ok().and_then(|level| level.parse().ok());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(wanted.unwrap_or(LevelFilter::WARN))
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .finish();
    // Only the first one counts, and this is it.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
