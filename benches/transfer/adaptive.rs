//! Whether `auto` keeps up with the best fixed effort, whatever the link.

use crate::corpus;
use crate::link::{ADDRESS, Link, SINK, SOURCE};
use crate::measure::{Place, rate};
use crate::options::{Case, Options};

/// And how many times the guest is sent over: a link is found out within a second, so each should take some.
const LINKS: [(Option<&str>, usize); 3] = [(Some("50mbit"), 1), (Some("500mbit"), 4), (None, 24)];
const FIXED: [&str; 7] = ["raw", "fast", "light", "balanced", "1", "6", "12"];

/// Rates of one link, by the place in [`FIXED`].
struct Row {
    auto: f64,
    fixed: Vec<f64>,
}

/// Prints a table for each workload, as it is measured.
pub fn report(options: &Options) {
    let names = corpus::names(&options.pages);
    if names.is_empty() {
        eprintln!("skipped: no corpus in {} (pass --pages DIR)", options.pages.display());
    }
    let lanes = *options.lanes.last().expect("lanes");
    for name in names {
        print!("{name:<10} {:<9} {:>7}", "link", "auto");
        FIXED.iter().for_each(|effort| print!(" {effort:>8}"));
        println!("  of the best   of raw");
        let mut rows = Vec::new();
        for (link, times) in LINKS {
            let case = Case::Corpus { folder: options.pages.clone(), name: name.clone(), times };
            let Some(row) = measured(link, &case, lanes, options) else { return };
            print(link, &row);
            rows.push(row);
        }
        whole(&rows);
    }
}

fn measured(link: Option<&str>, case: &Case, lanes: u16, options: &Options) -> Option<Row> {
    let _link = Link::up(link)?;
    let place = Place::Namespaces { source: SOURCE.into(), sink: SINK.into(), address: ADDRESS.into() };
    let of = |effort: &str| rate(case, lanes, effort, options, &place);
    Some(Row { auto: of("auto"), fixed: FIXED.iter().map(|effort| of(effort)).collect() })
}

fn print(link: Option<&str>, row: &Row) {
    let best = row.fixed.iter().copied().fold(0.0, f64::max);
    print!("{:<10} {:<9} {:>7.1}", "", link.unwrap_or("unshaped"), row.auto);
    row.fixed.iter().for_each(|rate| print!(" {rate:>8.1}"));
    println!("  {:>11.2} {:>8.2}", row.auto / best, row.auto / row.fixed[0]);
}

/// All links together: the geometric mean, in which each counts as much as the others.
fn whole(rows: &[Row]) {
    let mean =
        |rate: &dyn Fn(&Row) -> f64| (rows.iter().map(|row| rate(row).ln()).sum::<f64>() / rows.len() as f64).exp();
    let fixed: Vec<f64> = (0..FIXED.len()).map(|at| mean(&|row: &Row| row.fixed[at])).collect();
    let auto = mean(&|row: &Row| row.auto);
    print!("{:<10} {:<9} {auto:>7.1}", "", "all");
    fixed.iter().for_each(|rate| print!(" {rate:>8.1}"));
    println!("  {:>11.2}", auto / fixed.iter().copied().fold(0.0, f64::max));
}
