//! What dictionaries save on pages that they were not trained from, by size of the extent: plain beside each.

use std::time::Duration;

use anyhow::ensure;
use dwcp_hde::{
    Bases, Decoder, Dictionaries, Dictionary, Effort, Encoder, MAX_TRAINING_PAGES, PAGE_BYTES, Request, is_zero,
};
use serde::Serialize;

use crate::corpus::{self, Workload};
use crate::measure::cpu;
use crate::options::Options;

/// Pages of an extent.
const EXTENTS: [usize; 4] = [1, 4, 16, 64];
/// KiB of a dictionary.
const SIZES: [usize; 4] = [16, 64, 110, 1024];
const EFFORTS: [(&str, Effort); 4] = [
    ("balanced", Effort::Balanced),
    ("level 1", Effort::Thorough(1)),
    ("level 3", Effort::Thorough(3)),
    ("level 12", Effort::Thorough(12)),
];
/// Of the pages of a first round one stretch of these in four is measured.
const STRETCH: usize = 64;

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    workload: String,
    /// `others`: trained from the other workloads, measured on a first round; `before`: trained from the first snapshot of
    /// the same guest, measured on pages that changed before the last.
    trained: &'static str,
    /// 0: without one.
    dictionary_kib: usize,
    extent_pages: usize,
    effort: &'static str,
    saved_pct: f64,
    encode_mb_s: f64,
    decode_mb_s: f64,
}

/// Every row, printed as it is known.
pub fn report(options: &Options) -> anyhow::Result<Vec<Row>> {
    let all = Options { only: None, pages: options.pages.clone(), method: None, ..*options };
    let names = corpus::names(&all)?;
    let workloads = names.iter().map(|name| corpus::read(&all, name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for workload in workloads.iter().filter(|one| options.only.as_ref().is_none_or(|only| *only == one.name)) {
        let others: Vec<&[u8]> =
            workloads.iter().filter(|one| one.name != workload.name).flat_map(first_round).collect();
        let first: Vec<&[u8]> = first_round(workload).collect();
        let tested: Vec<&[u8]> = first.chunks(STRETCH).step_by(4).flatten().copied().collect();
        rows.extend(rows_of(&workload.name, "others", &others, &tested)?);
        rows.extend(rows_of(&workload.name, "before", &first, &changed(workload))?);
    }
    Ok(rows)
}

fn first_round(workload: &Workload) -> impl Iterator<Item = &[u8]> {
    let pages = workload.snapshots.first().into_iter().flat_map(|snapshot| snapshot.chunks(PAGE_BYTES));
    pages.take(workload.first_round).filter(|page| !is_zero(page))
}

/// What changed between the last two snapshots.
fn changed(workload: &Workload) -> Vec<&[u8]> {
    let [.., old, new] = workload.snapshots.as_slice() else { return Vec::new() };
    let pairs = new.chunks(PAGE_BYTES).zip(old.chunks(PAGE_BYTES));
    pairs.filter(|(new, old)| new != old && !is_zero(new)).map(|(new, _)| new).collect()
}

fn rows_of(workload: &str, trained: &'static str, from: &[&[u8]], on: &[&[u8]]) -> anyhow::Result<Vec<Row>> {
    let step = from.len().div_ceil(MAX_TRAINING_PAGES).max(1);
    let sample: Vec<u8> = from.iter().step_by(step).copied().flatten().copied().collect();
    let mut held = vec![(0, Dictionaries::none())];
    for kib in SIZES {
        let start = cpu();
        let dictionary: Dictionary = dwcp_hde::train(&sample, kib << 10)?.dictionary;
        let spent = cpu().saturating_sub(start).as_secs_f64();
        println!("# {workload} {trained}: {kib} KiB asked for, {} bytes, {spent:.1} s", dictionary.bytes().len());
        held.push((kib, Dictionaries::none().with(0, &dictionary).for_groups_of(usize::MAX)));
    }
    println!(
        "{:<9} {:<7} {:>6} {:<9} {:>5} {:>8} {:>9} {:>9}",
        "workload", "trained", "extent", "effort", "KiB", "saved %", "enc MB/s", "dec MB/s"
    );
    let mut rows = Vec::new();
    for extent_pages in EXTENTS {
        for (effort, how) in EFFORTS {
            for (dictionary_kib, dictionaries) in &held {
                let (saved_pct, [encode_mb_s, decode_mb_s]) = measured(on, extent_pages, how, dictionaries)?;
                let row = Row {
                    workload: workload.to_owned(),
                    trained,
                    dictionary_kib: *dictionary_kib,
                    extent_pages,
                    effort,
                    saved_pct,
                    encode_mb_s,
                    decode_mb_s,
                };
                println!(
                    "{:<9} {:<7} {:>6} {:<9} {:>5} {:>8.2} {:>9.0} {:>9.0}",
                    row.workload, trained, extent_pages, effort, dictionary_kib, saved_pct, encode_mb_s, decode_mb_s
                );
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Share saved by the blocks alone, in percent, and the rates.
fn measured(pages: &[&[u8]], extent: usize, effort: Effort, held: &Dictionaries) -> anyhow::Result<(f64, [f64; 2])> {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let (mut block, mut scratch) = (Vec::new(), Vec::new());
    let (mut bytes_in, mut bytes_out) = (0, 0);
    let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
    let none = Bases::none();
    let request = Request { dictionaries: held, ..Request::new(&none, effort) };
    for pages in pages.chunks(extent) {
        let plain = pages.concat();
        block.clear();
        let start = cpu();
        let done = encoder.encode_with(&plain, &request, &mut block)?;
        encoding += cpu().saturating_sub(start);
        if done.raw_tail {
            block.extend_from_slice(&plain);
        }
        let start = cpu();
        let back = decoder.decode_with(&block, pages.len(), &mut Bases::none(), held, &mut scratch)?;
        decoding += cpu().saturating_sub(start);
        ensure!(back == plain, "a block does not give back its pages: the rows would be worth nothing");
        (bytes_in, bytes_out) = (bytes_in + plain.len(), bytes_out + block.len());
    }
    let rate = |time: Duration| bytes_in as f64 / 1e6 / time.as_secs_f64().max(1e-9);
    Ok((100.0 * (1.0 - bytes_out as f64 / bytes_in.max(1) as f64), [rate(encoding), rate(decoding)]))
}
