//! The system calls of a process guest's program, with any arguments. Needs `/dev/kvm` and root.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_vmm::process::syscalls::tests::fuzz(data));
