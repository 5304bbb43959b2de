//! Writes the component that answers HTTP requests in the tests, for benchmarks: `wasm-handler DIRECTORY`

use std::path::Path;

fn main() {
    let dir = std::env::args_os().nth(1).expect("usage: wasm-handler DIRECTORY");
    println!("{}", berth_tests::wasm::handler(Path::new(&dir)).display());
}
