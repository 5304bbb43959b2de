//! Which histories a simulation goes through: `BERTH_SEEDS=FIRST..END` chooses others than usual, one that failed or
//! many more.

use std::env;
use std::ops::Range;

/// The seeds that are asked for, or else as many as usual.
pub fn seeds(usual: u64) -> Range<u64> {
    let Ok(text) = env::var("BERTH_SEEDS") else { return 0..usual };
    let bounds = text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    bounds.unwrap_or_else(|| panic!("BERTH_SEEDS={text}: FIRST..END is wanted"))
}
