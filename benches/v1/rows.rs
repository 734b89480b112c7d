//! Repeats measurements in turn, takes medians, prints them.

use serde_json::{Value, json};

use crate::ends::Path;
use crate::link::Link;
use crate::pages::Pages;
use crate::pairs::{Run, run};
use crate::{Options, WAYS, cases};

/// Pairs of v1's path and a plain copy.
const PAIRS: usize = 9;

pub fn all(options: &Options) -> Vec<Value> {
    if options.plain {
        return vec![plain(options)];
    }
    let mut rows = Vec::new();
    for &link in &options.links {
        let shaped = link == "1gbit";
        // Up as long as it is measured over.
        let up = if shaped { Link::up(Some("1gbit")) } else { None };
        if shaped && up.is_none() {
            continue;
        }
        rows.extend(cases(options).iter().map(|pages| versions(pages, options, link)));
        if !shaped {
            rows.push(plain(options));
        }
    }
    rows
}

fn versions(pages: &Pages, options: &Options, link: &str) -> Value {
    let shaped = link == "1gbit";
    let mut runs: [Vec<Run>; 3] = Default::default();
    for repetition in 0..options.reps {
        for (way, runs) in WAYS.into_iter().zip(&mut runs) {
            let run = run(way, pages, options.connections, shaped);
            eprintln!("{}, {link}, run {}: {} {:.0} MB/s", pages.name(), repetition + 1, way.word(), run.mb_s);
            runs.push(run);
        }
    }
    let [clear, tls, v3] = runs.each_ref().map(|runs| median(runs));
    let base = if shaped { clear } else { tls };
    json!({
        "case": pages.name(),
        "link": link,
        "connections": options.connections,
        "v1_mb_s": rounded(clear.mb_s),
        "v1_tls_mb_s": rounded(tls.mb_s),
        "v3_mb_s": rounded(v3.mb_s),
        "ratio": rounded(v3.mb_s / base.mb_s),
        "cpu_ratio": rounded(v3.cpu / base.cpu),
        "rss_ratio": rounded(v3.peak as f64 / base.peak as f64),
    })
}

/// v1's path without compression beside a copy: what framing, places and one task for all connections cost.
fn plain(options: &Options) -> Value {
    let pages = Pages::Random(options.size);
    let mut runs: [Vec<Run>; 2] = Default::default();
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let [copy, plain] = [Path::Copy, Path::Plain].map(|path| run(path, &pages, options.connections, false));
        eprintln!("plain bytes, pair {}: copy {:.0}, v1 {:.0} MB/s", pair + 1, copy.mb_s, plain.mb_s);
        ratios.push(plain.mb_s / copy.mb_s);
        runs[0].push(copy);
        runs[1].push(plain);
    }
    let [copy, plain] = runs.each_ref().map(|runs| median(runs));
    ratios.sort_by(f64::total_cmp);
    json!({
        "case": "plain bytes",
        "link": "loopback",
        "connections": options.connections,
        "v1_mb_s": rounded(plain.mb_s),
        "v1_tls_mb_s": null,
        "v3_mb_s": null,
        "copy_mb_s": rounded(copy.mb_s),
        "ratio": rounded(ratios[PAIRS / 2]),
        "cpu_ratio": rounded(plain.cpu / copy.cpu),
        "rss_ratio": rounded(plain.peak as f64 / copy.peak as f64),
    })
}

fn median(runs: &[Run]) -> Run {
    let over = |figure: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Run { mb_s: over(|run| run.mb_s), cpu: over(|run| run.cpu), peak: over(|run| run.peak as f64) as u64 }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

pub fn table(rows: &[Value]) {
    println!(
        "{:<16} {:>9} {:>5} {:>9} {:>12} {:>9} {:>7} {:>7} {:>7}",
        "case", "link", "conns", "v1 MB/s", "v1+TLS MB/s", "v3 MB/s", "ratio", "CPU", "memory"
    );
    for row in rows {
        let number = |name: &str, places| row[name].as_f64().map_or("-".to_owned(), |real| format!("{real:.places$}"));
        println!(
            "{:<16} {:>9} {:>5} {:>9} {:>12} {:>9} {:>7} {:>7} {:>7}",
            row["case"].as_str().unwrap_or_default(),
            row["link"].as_str().unwrap_or_default(),
            number("connections", 0),
            number("v1_mb_s", 0),
            number("v1_tls_mb_s", 0),
            number("v3_mb_s", 0),
            number("ratio", 2),
            number("cpu_ratio", 2),
            number("rss_ratio", 2),
        );
    }
}
