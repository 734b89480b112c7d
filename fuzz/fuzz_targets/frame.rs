//! Any frame of a control connection, and the head of an extent.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_frame(bytes));
