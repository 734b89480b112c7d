//! dwcp
fn main() {}
