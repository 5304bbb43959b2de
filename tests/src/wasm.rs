//! Wasm modules and components to run: from text, and from the fixture program.

use std::fs;
use std::path::{Path, PathBuf};

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::fixtures;

/// The module or component that `text` spells out, as the file `name` in `dir`.
pub fn from_text(dir: &Path, name: &str, text: &str) -> PathBuf {
    write(dir, name, &wat::parse_str(text).unwrap_or_else(|error| panic!("the text of {name} is wrong: {error}")))
}

/// The bytes of the module or component that `text` spells out; none where that is more than its parser takes.
pub fn try_from_text(text: &str) -> Option<Vec<u8>> {
    wat::parse_str(text).ok()
}

/// A file with these bytes.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).expect("room for a module");
    path
}

/// The fixture program as a component for preview 2.
pub fn component(dir: &Path) -> PathBuf {
    let module = fs::read(fixtures::wasm_program()).expect("the fixture program is there");
    let bytes = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| {
            encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)
        })
        .and_then(|encoder| encoder.validate(true).encode())
        .expect("the fixture program can be made a component");
    write(dir, "component.wasm", &bytes)
}

/// A handler of HTTP requests, see `wasm_handler.wat`.
pub fn handler(dir: &Path) -> PathBuf {
    component_of(dir, "handler", include_str!("wasm_handler.wat"), include_str!("wasm_http.wit"))
}

/// A command that makes an HTTP request, see `wasm_client.wat`.
pub fn client(dir: &Path) -> PathBuf {
    component_of(dir, "client", include_str!("wasm_client.wat"), include_str!("wasm_http.wit"))
}

/// The core module that `text` spells out, as a component of the world `name` in `interfaces`: the file `NAME.wasm`.
pub fn component_of(dir: &Path, name: &str, text: &str, interfaces: &str) -> PathBuf {
    let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("the text of {name} is wrong: {error}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str(name, interfaces).expect("its interfaces can be read");
    let world = resolve.select_world(&[package], Some(name)).expect("there is such a world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("it can be described");
    let encoder = ComponentEncoder::default().module(&module).expect("it suits its world");
    write(dir, &format!("{name}.wasm"), &encoder.validate(true).encode().expect("it can be made a component"))
}
