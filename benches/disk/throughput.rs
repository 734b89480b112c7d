//! How fast an image becomes durable, beside `dd` with a sync at its end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::image;
use crate::options::{Options, Run};
use crate::process::Pair;

/// The share of dd's throughput that is wanted.
const GOAL: f64 = 0.8;

pub fn report(options: &Options) {
    let (folder, place) = image::room(&options.dir, options.size * 2);
    let path = folder.path().join("image");
    eprintln!("making an image of {} bytes in {place}", options.size);
    image::make(&path, options.size);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 1..=options.reps {
        let mb_s = |seconds: f64| options.size as f64 / 1e6 / seconds;
        theirs.push(mb_s(dd(&path, &folder.path().join("dd.out"))));
        ours.push(mb_s(transfer(folder.path(), &path, options.lanes)));
        eprintln!("run {run}: dd {:.0} MB/s, dwcp {:.0} MB/s", theirs[run - 1], ours[run - 1]);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    if options.json {
        let (bytes, lanes) = (options.size, options.lanes);
        let row = json!({
            "schema": 1, "event": "summary", "bytes": bytes, "lanes": lanes, "place": place,
            "mb_s": ours.round(), "dd_mb_s": theirs.round(), "ratio": (ratio * 1e3).round() / 1e3, "goal": GOAL,
        });
        println!("{row}");
    } else {
        println!("{} bytes, {} lanes, {place}, median of {}", options.size, options.lanes, options.reps);
        println!("dd, fdatasync  {theirs:>7.0} MB/s");
        println!("dwcp           {ours:>7.0} MB/s until RUNNING, which is durable");
        println!("ratio          {ratio:>7.2} (goal {GOAL})");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds, from the start of the process to its end.
fn dd(image: &Path, out: &Path) -> f64 {
    let start = Instant::now();
    let of = |what: &str, path: &Path| format!("{what}={}", path.display());
    let mut command = Command::new("dd");
    command.args([of("if", image), of("of", out), "bs=1M".to_owned(), "conv=fdatasync".to_owned()]);
    let status = command.stderr(Stdio::null()).status().expect("dd");
    let seconds = start.elapsed().as_secs_f64();
    assert!(status.success(), "dd: {status}");
    std::fs::remove_file(out).expect("own file");
    seconds
}

/// Seconds, from the start of the sender's process until it was told RUNNING.
fn transfer(base: &Path, image: &Path, lanes: u16) -> f64 {
    let pair = Pair::new(base, "throughput", image, lanes, false);
    let (mut sink, address) = pair.sink();
    let start = Instant::now();
    let mut source = pair.source(&address, Run::Whole);
    source.until("done");
    let seconds = start.elapsed().as_secs_f64();
    sink.until("done");
    image::compare(image, &pair.arrived());
    pair.remove();
    seconds
}
