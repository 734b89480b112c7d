//! A hundred thousand malformed openings; `examples/openings.rs` has the body and takes more.

#[path = "../examples/openings.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod openings;

#[test]
fn a_hundred_thousand_malformed_openings_get_an_answer_and_little_memory() {
    let done = openings::run(100_000, 4).unwrap();
    let counts = done.counts;
    for (name, count) in
        [("tls", counts.tls), ("garbage", counts.garbage), ("started", counts.started), ("joined", counts.joined)]
    {
        assert!(count > 100, "{name}: {count}; the openings do not come by here");
    }
    assert!(counts.silent > 100 && done.waiting > 100 && done.groups > 10, "{done:?}");
}
