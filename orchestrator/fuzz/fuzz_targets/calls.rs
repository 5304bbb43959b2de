//! Calls in protobuf, as clients of all APIs send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_orchestrator::api::protobuf::fuzz_calls(data));
