//! The first bytes of a connection, before the peer is known.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_hello(bytes));
