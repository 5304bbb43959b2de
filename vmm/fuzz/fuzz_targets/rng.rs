//! The rng device against an ill-behaved driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_vmm::devices::rng::tests::fuzz(data));
