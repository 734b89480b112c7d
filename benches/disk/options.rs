use std::path::PathBuf;

pub const USAGE: &str = "\
cargo bench --bench disk                 an image over loopback to disk until it is RUNNING there, beside
                                         dd if=IMAGE of=OUT bs=1M conv=fdatasync of the same bytes, in turn
cargo bench --bench disk -- --resume     both ends killed when 90 % is durable and started again: how long until
                                         the first page that was not held travels, with and without ledger
  --size 2g      bytes of the image, with k, m or g (8g with --resume); twice as many must be free
  --lanes 4      connections
  --reps 3       runs of each, of which the median is told (not with --resume)
  --dir DIR      on which disk [default: cargo's target directory]; all files are removed at the end
  --json         one line for programs

Caches are left as they are: the image was just written, so it is read from memory by both, as far as
there is memory. Names in DIR begin with dwcp-disk-; an interrupted run leaves them.";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub resume: bool,
    pub json: bool,
    pub size: u64,
    pub lanes: u16,
    pub reps: usize,
    pub dir: PathBuf,
    /// Set in child processes.
    pub role: Option<Role>,
}

/// What a child process does.
#[derive(Clone, Debug)]
pub enum Role {
    /// Receives one image.
    Sink { folder: PathBuf, identity: PathBuf },
    /// Sends one.
    Source { image: PathBuf, state: PathBuf, identity: PathBuf, address: String, lanes: u16, ledger: bool, run: Run },
}

/// Which run of a sender it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The only one.
    Whole,
    /// It will be killed near its end, and is slow there, so as not to be through before.
    First,
    /// After one that was killed when so many pages were durable.
    Again { durable: u64 },
}

impl Run {
    pub fn word(self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::First => "first".to_owned(),
            Self::Again { durable } => durable.to_string(),
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "whole" => Self::Whole,
            "first" => Self::First,
            durable => Self::Again { durable: durable.parse().expect("pages") },
        }
    }
}

impl Options {
    pub fn parse(words: Vec<String>) -> Self {
        let (mut size_given, dir) = (None, PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
        let mut options = Self { resume: false, json: false, size: 0, lanes: 4, reps: 3, dir, role: None };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--resume" => options.resume = true,
                "--json" => options.json = true,
                "--size" => size_given = Some(size(&value())),
                "--lanes" => options.lanes = value().parse().expect("--lanes is a number"),
                "--reps" => options.reps = value().parse().ok().filter(|&reps| reps > 0).expect("--reps is 1 or more"),
                "--dir" => options.dir = value().into(),
                "--child" => options.role = Some(role(&mut words)),
                // Cargo's own.
                "--bench" => {}
                other => panic!("unknown option {other}; see --help"),
            }
        }
        options.size = size_given.unwrap_or(if options.resume { 8 << 30 } else { 2 << 30 });
        assert!(options.size >= 64 << 20, "an image below 64m measures nothing");
        options
    }
}

fn role(words: &mut impl Iterator<Item = String>) -> Role {
    let mut next = || words.next().expect("a complete role");
    match next().as_str() {
        "sink" => Role::Sink { folder: next().into(), identity: next().into() },
        "source" => Role::Source {
            image: next().into(),
            state: next().into(),
            identity: next().into(),
            address: next(),
            lanes: next().parse().expect("lanes"),
            ledger: next() == "ledger",
            run: Run::parse(&next()),
        },
        other => panic!("unknown end {other}"),
    }
}

fn size(text: &str) -> u64 {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => panic!("--size is a number with k, m or g"),
    };
    // Whole pages.
    (digits.parse::<u64>().expect("--size is a number with k, m or g") << shift) / 4096 * 4096
}
