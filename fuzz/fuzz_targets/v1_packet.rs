//! A packet or a block list of version 1.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_v1_packet(bytes));
