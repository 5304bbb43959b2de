//! The headers of a process guest's program.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_vmm::process::loader::elf::tests::fuzz(data));
