//! What a node is given as flag documents, one after the other.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dwcp_sim::check_flag_document(bytes));
