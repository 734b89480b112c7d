//! A list of operations on a source and a sink.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::run_operations(bytes));
