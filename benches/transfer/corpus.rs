//! Reads the first snapshot of a workload of the corpus: see the README beside the files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The bytes of snapshot t0, all regions one after the other.
pub fn first_snapshot(folder: &Path, name: &str) -> Vec<u8> {
    let about = std::fs::read_to_string(folder.join(format!("{name}.json"))).expect("the workload's description");
    let about: serde_json::Value = serde_json::from_str(&about).expect("JSON");
    let regions = about["regions"].as_array().expect("regions").len() as u64;
    let bytes = regions * about["region_bytes"].as_u64().expect("region_bytes");
    let mut packed = Vec::new();
    let path = folder.join(format!("{name}.pages.zst"));
    File::open(&path).and_then(|mut file| file.read_to_end(&mut packed)).expect("the workload's pages");
    let mut plain = vec![0; usize::try_from(bytes).expect("fits")];
    let mut context = zstd_safe::DCtx::create();
    context.set_parameter(zstd_safe::DParameter::WindowLogMax(27)).expect("a window of 128 MiB");
    let mut input = zstd_safe::InBuffer::around(&packed);
    let mut output = zstd_safe::OutBuffer::around(&mut plain[..]);
    while output.pos() < output.capacity() {
        let hint = context.decompress_stream(&mut output, &mut input).expect("zstd");
        assert!(hint != 0 || output.pos() == output.capacity(), "the file is shorter than its description says");
    }
    plain
}

/// Workloads in a folder, by their descriptions.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names
}
