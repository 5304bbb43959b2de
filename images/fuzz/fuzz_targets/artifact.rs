//! Manifest and configuration of a Wasm artifact, by a stranger.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_images::fuzz_artifact(data));
