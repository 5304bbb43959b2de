//! Makes the built-in modules out of their text.

use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names the directory"));
    for name in ["echo", "idle", "cpu"] {
        let source = format!("modules/{name}.wat");
        println!("cargo::rerun-if-changed={source}");
        let wasm = wat::parse_file(&source).unwrap_or_else(|error| panic!("{error}"));
        std::fs::write(out.join(format!("{name}.wasm")), wasm).expect("the build's directory can be written to");
    }
}
