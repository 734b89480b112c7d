//! Whether `auto` keeps up with the best fixed effort, whatever the link.

use crate::corpus;
use crate::link::{ADDRESS, Link, SINK, SOURCE};
use crate::measure::{Place, rates};
use crate::options::{Case, Options};

/// Links, and how many times the guest is sent over each: a link is found out within a second, so each should take some.
const LINKS: [(&str, usize); 3] = [("50mbit", 1), ("500mbit", 4), (UNSHAPED, 24)];
const UNSHAPED: &str = "unshaped";
/// What `auto` is held against, unless `--efforts` names others.
pub const FIXED: [&str; 7] = ["raw", "fast", "light", "balanced", "1", "6", "12"];

/// Rates over one link, by the place of an effort among those that are fixed.
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
    let asked = |link: &str| options.links.is_empty() || options.links.iter().any(|asked| asked == link);
    for name in names {
        print!("{name:<10} {:<9} {:>7}", "link", "auto");
        options.efforts.iter().for_each(|effort| print!(" {effort:>8}"));
        println!("  of the best");
        let mut rows = Vec::new();
        for (link, times) in LINKS.into_iter().filter(|(link, _)| asked(link)) {
            let case = Case::Corpus { folder: options.pages.clone(), name: name.clone(), times };
            let Some(row) = measured(link, &case, lanes, options) else { return };
            print(link, &row);
            rows.push(row);
        }
        whole(&rows);
    }
}

fn measured(link: &str, case: &Case, lanes: u16, options: &Options) -> Option<Row> {
    let _link = Link::up(Some(link).filter(|link| *link != UNSHAPED))?;
    let place = Place::Namespaces { source: SOURCE.into(), sink: SINK.into(), address: ADDRESS.into() };
    let efforts: Vec<&str> = std::iter::once("auto").chain(options.efforts.iter().map(String::as_str)).collect();
    let mut rates = rates(case, lanes, &efforts, options, &place);
    Some(Row { auto: rates.remove(0), fixed: rates })
}

fn print(link: &str, row: &Row) {
    print!("{:<10} {:<9} {:>7.1}", "", link, row.auto);
    row.fixed.iter().for_each(|rate| print!(" {rate:>8.1}"));
    println!("  {:>11.2}", row.auto / best(&row.fixed));
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

/// All links together: the geometric mean, in which each counts as much as the others.
fn whole(rows: &[Row]) {
    let mean =
        |rate: &dyn Fn(&Row) -> f64| (rows.iter().map(|row| rate(row).ln()).sum::<f64>() / rows.len() as f64).exp();
    let Some(first) = rows.first() else { return };
    let fixed: Vec<f64> = (0..first.fixed.len()).map(|at| mean(&|row: &Row| row.fixed[at])).collect();
    print("all", &Row { auto: mean(&|row: &Row| row.auto), fixed });
}
