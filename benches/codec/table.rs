//! Rows for people.

use crate::measure::Row;

/// One round as a table. `chosen_of`: as of [`Round`](crate::rounds::Round).
pub fn print(rows: &[Row], chosen_of: Option<usize>) {
    let Some(first) = rows.first() else { return };
    println!(
        "\n{} {}: {} pages{}, {:.1} MB not zero; {} zero pages",
        first.workload,
        first.round,
        first.pages + first.zero_pages,
        chosen_of.map_or_else(String::new, |all| format!(" of {all}")),
        first.bytes_in as f64 / 1e6,
        first.zero_pages
    );
    println!("{:<18} {:>12} {:>8} {:>12} {:>12}", "method", "bytes", "saved %", "encode MB/s", "decode MB/s");
    for row in rows {
        println!(
            "{:<18} {:>12} {:>8.2} {:>12.0} {:>12.0}",
            row.method, row.bytes_out, row.saved_pct, row.encode_mb_s, row.decode_mb_s
        );
    }
}
