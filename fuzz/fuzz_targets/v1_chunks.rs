//! A message of version 1 over several connections.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_v1_chunks(bytes));
