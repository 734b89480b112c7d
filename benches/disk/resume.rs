//! What a kill of both ends costs, when 90 % of an image is durable.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::image;
use crate::options::{Options, Run};
use crate::process::Pair;

/// Bytes a second, in GB, at which a sender without ledger is wanted to hash its image anew.
const GOAL: f64 = 1.5;

/// One transfer that was killed and gone on with.
struct Resumed {
    ledger: bool,
    /// Pages that the receiver held from before.
    held: u64,
    /// From the start of the later process until the first page that was not held travels.
    first_ms: f64,
    /// How fast what is held was found to be the same.
    rehash: f64,
    /// Pages that travelled in the second run, and those of them that were held.
    carried: u64,
    again: u64,
}

pub fn report(options: &Options) {
    let (folder, place) = image::room(&options.dir, options.size * 2);
    let path = folder.path().join("image");
    eprintln!("making an image of {} bytes in {place}", options.size);
    image::make(&path, options.size);
    let rows = [true, false].map(|ledger| resume(folder.path(), &path, options, ledger));
    if options.json {
        let rows: Vec<_> = rows.iter().map(Resumed::json).collect();
        let (bytes, lanes) = (options.size, options.lanes);
        let line =
            json!({"schema": 1, "event": "summary", "bytes": bytes, "lanes": lanes, "place": place, "rows": rows});
        println!("{line}");
    } else {
        println!("{} bytes, {} lanes, {place}; both ends killed when 90 % was durable", options.size, options.lanes);
        rows.iter().for_each(Resumed::print);
    }
    // Told first: the figures say where to look.
    for row in &rows {
        assert_eq!(row.again, 0, "pages that were durable travelled again");
    }
}

fn resume(base: &Path, image: &Path, options: &Options, ledger: bool) -> Resumed {
    let name = if ledger { "ledger" } else { "plain" };
    let pair = Pair::new(base, name, image, options.lanes, ledger);
    let pages = options.size / 4096;
    let (mut sink, address) = pair.sink();
    let mut source = pair.source(&address, Run::First);
    let durable = loop {
        match source.next() {
            (word, rest) if word == "durable" => {
                let durable: u64 = rest.parse().expect("pages");
                if durable >= pages / 10 * 9 {
                    break durable;
                }
            }
            (word, _) if word == "done" => panic!("all of it arrived before it could be killed: take a larger --size"),
            _ => {}
        }
    };
    source.kill();
    sink.kill();
    eprintln!("{name}: killed when {durable} of {pages} pages were durable");

    let (mut sink, address) = pair.sink();
    let start = Instant::now();
    let mut source = pair.source(&address, Run::Again { durable });
    let (mut first_ms, mut rehash) = (None, None);
    let carried: u64 = loop {
        match source.next() {
            (word, _) if word == "first" => first_ms = Some(start.elapsed().as_secs_f64() * 1e3),
            (word, rest) if word == "rehash" => rehash = Some(rest.parse().expect("a rate")),
            (word, rest) if word == "done" => break rest.parse().expect("pages"),
            _ => {}
        }
    };
    let held: u64 = sink.until("held").parse().expect("pages");
    sink.until("done");
    image::compare(image, &pair.arrived());
    pair.remove();
    let first_ms = first_ms.unwrap_or_else(|| panic!("all of it arrived before it was killed: take a larger --size"));
    let rehash = rehash.expect("what is held was looked at");
    // A page whose durability was told is held; more may be.
    assert!(held >= durable, "{durable} pages were told durable, {held} are held");
    Resumed { ledger, held, first_ms, rehash, carried, again: carried.saturating_sub(pages - held) }
}

impl Resumed {
    fn json(&self) -> Value {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        json!({
            "ledger": self.ledger, "pages_held": self.held, "first_page_ms": round(self.first_ms),
            "pages_carried": self.carried, "pages_again": self.again,
            "rehash_gb_s": (!self.ledger).then(|| round(self.rehash)),
        })
    }

    fn print(&self) {
        let Self { held, first_ms, carried, again, .. } = self;
        let ledger = if self.ledger { "with ledger   " } else { "without ledger" };
        println!("{ledger}  first page that was not held after {first_ms:.0} ms");
        println!("                {held} pages held, {carried} travelled, {again} of them again (must be 0)");
        if !self.ledger {
            println!("                {:.2} GB/s of what is held read and hashed anew (goal {GOAL})", self.rehash);
        }
    }
}
