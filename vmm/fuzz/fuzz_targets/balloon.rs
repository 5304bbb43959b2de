//! The balloon device against an ill-behaved driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_vmm::devices::balloon::tests::fuzz(data));
