//! Guest memory from disk: a folder in the format of the lab corpus, or the sample of the repository.
//!
//! A workload is `NAME.json`, which tells regions and snapshots, and `NAME.pages.zst`, which holds for each snapshot each
//! region, one after the other, in one zstd frame.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use dwcp_hde::PAGE_BYTES;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::options::Options;

/// The same pages of one guest at different times.
#[derive(Debug)]
pub struct Workload {
    pub name: String,
    /// The guest's page number of each page of a snapshot; each once, in any order.
    pub numbers: Vec<u32>,
    /// In time order, each as long as `numbers`.
    pub snapshots: Vec<Vec<u8>>,
    /// How many of them a first round sends: all, but for the sample, whose changed pages are others.
    pub first_round: usize,
}

/// What a description says of its pages. Other fields are for people.
#[derive(Debug, Deserialize)]
struct Description {
    page_size: usize,
    snapshots: usize,
    region_bytes: usize,
    /// Guest-physical byte offsets.
    regions: Vec<u64>,
    raw_bytes: usize,
    sha256_raw: String,
}

/// The largest window that a corpus file may ask for.
const WINDOW_LOG: u32 = 27;
const SAMPLE: &str = "tests/data/guest-pages.zst";
const SAMPLE_WORKLOADS: [&str; 3] = ["redis", "compile", "pgbench"];
/// Pages of the sample, see the README beside it: of a first round, of changed pages, of a workload.
const SAMPLE_FIRST: usize = 320;
const SAMPLE_CHANGED: usize = 160;
const SAMPLE_PAGES: usize = SAMPLE_FIRST + 2 * SAMPLE_CHANGED;

/// The workloads that the command line asks for, by name.
pub fn names(options: &Options) -> anyhow::Result<Vec<String>> {
    let mut names = match &options.pages {
        Some(folder) => described(folder)?,
        None => SAMPLE_WORKLOADS.map(str::to_owned).to_vec(),
    };
    if let Some(only) = &options.only {
        let known = names.join(", ");
        names.retain(|name| name == only);
        ensure!(!names.is_empty(), "--only {only}: no such workload; there are: {known}");
    }
    Ok(names)
}

pub fn read(options: &Options, name: &str) -> anyhow::Result<Workload> {
    options.pages.as_ref().map_or_else(|| sample(name), |folder| from_folder(folder, name))
}

/// Names with a description and pages in `folder`, sorted.
fn described(folder: &Path) -> anyhow::Result<Vec<String>> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!("--pages {shown}: cannot list the folder; give one with NAME.json and NAME.pages.zst")
    })?;
    let mut names = Vec::new();
    for entry in entries {
        let file = entry.with_context(|| format!("--pages {shown}: cannot list the folder"))?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
        names.extend(name.filter(|name| folder.join(format!("{name}.pages.zst")).exists()).map(str::to_owned));
    }
    names.sort();
    ensure!(!names.is_empty(), "--pages {shown}: no workload there; give a folder with NAME.json and NAME.pages.zst");
    Ok(names)
}

fn from_folder(folder: &Path, name: &str) -> anyhow::Result<Workload> {
    let path = folder.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let about: Description = serde_json::from_str(&text)
        .with_context(|| format!("{}: no description of a workload; copy the corpus again", path.display()))?;
    let snapshot = about.check().with_context(|| format!("{}: contradicts itself", path.display()))?;
    let path = folder.join(format!("{name}.pages.zst"));
    let plain = decompress(&path, about.raw_bytes)?;
    let found: String = Sha256::digest(&plain).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        found == about.sha256_raw,
        "{}: its pages have SHA-256 {found}, but {name}.json says {}: the files do not belong together or are damaged; copy \
         both again",
        path.display(),
        about.sha256_raw
    );
    Ok(Workload {
        name: name.to_owned(),
        numbers: about.numbers()?,
        snapshots: plain.chunks_exact(snapshot).map(<[u8]>::to_vec).collect(),
        first_round: snapshot / PAGE_BYTES,
    })
}

impl Description {
    /// The bytes of one snapshot.
    fn check(&self) -> anyhow::Result<usize> {
        ensure!(self.page_size == PAGE_BYTES, "page_size is {}, and only {PAGE_BYTES} is supported", self.page_size);
        ensure!(
            self.region_bytes > 0 && self.region_bytes.is_multiple_of(PAGE_BYTES),
            "region_bytes is {}, which is no whole number of pages",
            self.region_bytes
        );
        let snapshot = self.regions.len().checked_mul(self.region_bytes).filter(|bytes| *bytes > 0);
        let snapshot = snapshot.with_context(|| format!("{} regions", self.regions.len()))?;
        ensure!(
            self.snapshots > 0 && snapshot.checked_mul(self.snapshots) == Some(self.raw_bytes),
            "raw_bytes is {}, but there are {} snapshots of {snapshot} bytes",
            self.raw_bytes,
            self.snapshots
        );
        Ok(snapshot)
    }

    fn numbers(&self) -> anyhow::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for offset in &self.regions {
            let first = offset / PAGE_BYTES as u64;
            for page in first..first + (self.region_bytes / PAGE_BYTES) as u64 {
                numbers.push(u32::try_from(page).with_context(|| format!("region at {offset}: past 16 TiB"))?);
            }
        }
        Ok(numbers)
    }
}

/// The `bytes` plain bytes of one zstd frame.
fn decompress(path: &Path, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let mut packed = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut packed));
    read.with_context(|| format!("{shown}: cannot be read"))?;
    let mut plain = Vec::new();
    plain.try_reserve_exact(bytes).with_context(|| format!("{shown}: its {bytes} bytes do not fit in memory"))?;
    plain.resize(bytes, 0);
    let mut frames = zstd_safe::DCtx::create();
    let wide = frames.set_parameter(zstd_safe::DParameter::WindowLogMax(WINDOW_LOG));
    wide.map_err(zstd_safe::get_error_name).map_err(anyhow::Error::msg)?;
    let mut input = zstd_safe::InBuffer::around(&packed);
    let mut output = zstd_safe::OutBuffer::around(plain.as_mut_slice());
    loop {
        let (read, written) = (input.pos(), output.pos());
        let left = frames.decompress_stream(&mut output, &mut input).map_err(zstd_safe::get_error_name);
        match left {
            Ok(0) if output.pos() == bytes && input.pos() == packed.len() => return Ok(plain),
            Ok(left) if left > 0 && (input.pos(), output.pos()) != (read, written) => {}
            Ok(_) => {
                bail!("{shown}: holds more or fewer bytes than the {bytes} of its description; copy both files again")
            }
            Err(reason) => {
                bail!("{shown}: no zstd frame with a window of at most 2^{WINDOW_LOG}: {reason}; copy it again")
            }
        }
    }
}

/// A workload of the sample: pages of a first round, and others before and after a second of work.
fn sample(name: &str) -> anyhow::Result<Workload> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SAMPLE);
    let plain = decompress(&path, SAMPLE_WORKLOADS.len() * SAMPLE_PAGES * PAGE_BYTES)
        .context("the sample cannot be used; give a corpus with --pages DIR")?;
    let place = SAMPLE_WORKLOADS.iter().position(|known| *known == name).context("no such workload in the sample")?;
    let guest = &plain[place * SAMPLE_PAGES * PAGE_BYTES..][..SAMPLE_PAGES * PAGE_BYTES];
    let (first, changed) = guest.split_at(SAMPLE_FIRST * PAGE_BYTES);
    let (old, new) = changed.split_at(SAMPLE_CHANGED * PAGE_BYTES);
    // The numbers of the changed pages are not recorded: every third page stands for pages that lie apart.
    let apart = (0..SAMPLE_CHANGED as u32).map(|page| SAMPLE_FIRST as u32 + 3 * page);
    Ok(Workload {
        name: name.to_owned(),
        numbers: (0..SAMPLE_FIRST as u32).chain(apart).collect(),
        snapshots: vec![[first, old].concat(), [first, new].concat()],
        first_round: SAMPLE_FIRST,
    })
}
