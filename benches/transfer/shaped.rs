//! Guest memory over a link of 1 Gbit/s.

use crate::corpus;
use crate::link::{ADDRESS, Link, SINK, SOURCE};
use crate::measure::{Place, Row, row};
use crate::options::{Case, Options};

pub fn rows(options: &Options) -> Vec<Row> {
    let names = corpus::names(&options.pages);
    if names.is_empty() {
        eprintln!("skipped: no corpus in {} (pass --pages DIR)", options.pages.display());
        return Vec::new();
    }
    let Some(_link) = Link::up(Some("1gbit")) else { return Vec::new() };
    let place = Place::Namespaces { source: SOURCE.into(), sink: SINK.into(), address: ADDRESS.into() };
    let lanes = *options.lanes.last().expect("lanes");
    names
        .into_iter()
        .map(|name| {
            let case = Case::Corpus { folder: options.pages.clone(), name: name.clone(), times: 1 };
            row(&format!("{name} at 1 Gbit/s"), &case, lanes, options, &place)
        })
        .collect()
}
