//! A compressed block, against any base.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_block(bytes));
