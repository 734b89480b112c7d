//! What a disk brings back of a store of baselines.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_baseline(bytes));
