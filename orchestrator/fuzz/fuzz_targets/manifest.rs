//! Manifest of a job, as somebody submits it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_orchestrator::jobs::manifest::fuzz_manifest(data));
