//! The command line.

use std::path::PathBuf;

use anyhow::{Context, bail};

pub const USAGE: &str = "\
What the codec saves on real guest memory and how fast, beside its peers in the same run.

usage: cargo bench --bench codec -- [--pages DIR] [--only NAME] [--method WORD] [--reps N] [--slow] [--dictionaries] [--json]

  --pages DIR     folder with NAME.json and NAME.pages.zst for each workload (the format of the lab corpus;
                  default: the 7.5 MiB sample of the repository, which has two rounds and is good for a look only)
  --only NAME     this workload only
  --method WORD   only methods whose name contains WORD
  --reps N        repetitions, interleaved over the methods; the median counts (default 3)
  --slow          also zstd -19 over the whole round (minutes)
  --dictionaries  instead: what dictionaries save that were trained from other workloads, or from an earlier snapshot
  --json          end with a line `summary {\"rows\": [...]}`

Rates are millions of non-zero bytes per second of CPU time of one thread.";

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// The corpus; `None` for the sample of the repository.
    pub pages: Option<PathBuf>,
    pub only: Option<String>,
    pub method: Option<String>,
    pub reps: usize,
    pub slow: bool,
    pub dictionaries: bool,
    pub json: bool,
}

impl Options {
    pub fn parse(words: Vec<String>) -> anyhow::Result<Self> {
        let mut options =
            Self { pages: None, only: None, method: None, reps: 3, slow: false, dictionaries: false, json: false };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value; see --help"));
            match word.as_str() {
                "--pages" => options.pages = Some(value()?.into()),
                "--only" => options.only = Some(value()?),
                "--method" => options.method = Some(value()?),
                "--reps" => options.reps = repetitions(&value()?)?,
                "--slow" => options.slow = true,
                "--dictionaries" => options.dictionaries = true,
                "--json" => options.json = true,
                "--bench" => {} // cargo adds it
                _ => bail!("unknown option {word}; see --help"),
            }
        }
        Ok(options)
    }
}

fn repetitions(word: &str) -> anyhow::Result<usize> {
    let count: usize = word.parse().with_context(|| format!("--reps {word}: not a number"))?;
    if !(1..=100).contains(&count) {
        bail!("--reps {count}: give a number from 1 to 100");
    }
    Ok(count)
}
