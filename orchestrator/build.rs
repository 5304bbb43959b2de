//! Compiles the definitions of Mesos' messages.

use std::path::PathBuf;

use protox::prost::Message as _;

fn main() {
    println!("cargo::rerun-if-changed=proto");
    let files = ["scheduler.proto", "executor.proto", "operator.proto", "agent.proto"];
    let compiled = protox::compile(files, ["proto"]).unwrap_or_else(|error| panic!("{error}"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names the directory"));
    std::fs::write(out.join("mesos.bin"), compiled.encode_to_vec()).expect("the build's directory can be written to");
}
