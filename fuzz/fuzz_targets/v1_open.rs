//! The first bytes of a connection, TLS or version 1.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_v1_open(bytes));
