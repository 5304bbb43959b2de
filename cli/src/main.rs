//! placeholder
mod flags;
fn main() {}
