use std::path::PathBuf;

use crate::adaptive::FIXED;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub json: bool,
    pub shaped: bool,
    pub adaptive: bool,
    pub stages: bool,
    pub size: u64,
    pub lanes: Vec<u16>,
    pub reps: usize,
    pub extent_pages: u16,
    pub effort: String,
    /// Of `--adaptive`: fixed efforts beside `auto`, and links (all of them where none is named).
    pub efforts: Vec<String>,
    pub links: Vec<String>,
    pub pages: PathBuf,
    /// Set in child processes.
    pub role: Option<Role>,
}

/// What a child process does.
#[derive(Clone, Debug)]
pub struct Role {
    pub sends: bool,
    pub peer: Peer,
    pub case: Case,
    pub lanes: u16,
    /// Pages of an extent at most.
    pub extent_pages: u16,
    /// How hard to compress: auto, raw, fast, light, balanced, or a level of zstd.
    pub effort: String,
    /// Where to connect to, or to listen at.
    pub address: String,
    pub identity: PathBuf,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Dwcp,
    Rustls,
    RustlsHash,
}

/// What is moved.
#[derive(Clone, Debug)]
pub enum Case {
    Random {
        bytes: u64,
    },
    /// The first snapshot of a workload, so many times over.
    Corpus {
        folder: PathBuf,
        name: String,
        times: usize,
    },
}

impl Peer {
    pub fn word(self) -> &'static str {
        match self {
            Self::Dwcp => "dwcp",
            Self::Rustls => "rustls",
            Self::RustlsHash => "rustls+hash",
        }
    }

    fn parse(word: &str) -> Self {
        [Self::Dwcp, Self::Rustls, Self::RustlsHash].into_iter().find(|peer| peer.word() == word).expect("a peer")
    }
}

impl Case {
    pub fn word(&self) -> String {
        match self {
            Self::Random { bytes } => format!("random:{bytes}"),
            Self::Corpus { folder, name, times } => format!("corpus:{times}:{name}:{}", folder.display()),
        }
    }

    fn parse(word: &str) -> Self {
        let parts: Vec<&str> = word.splitn(4, ':').collect();
        match parts[..] {
            ["random", bytes] => Self::Random { bytes: bytes.parse().expect("bytes") },
            ["corpus", times, name, folder] => {
                Self::Corpus { folder: folder.into(), name: name.to_owned(), times: times.parse().expect("a number") }
            }
            _ => panic!("unknown case {word}"),
        }
    }
}

impl Options {
    pub fn parse(words: Vec<String>) -> Self {
        let mut options = Self {
            json: false,
            shaped: false,
            adaptive: false,
            stages: false,
            size: 4 << 30,
            lanes: vec![1, 4],
            reps: 5,
            extent_pages: 256,
            effort: "auto".into(),
            efforts: FIXED.map(String::from).into(),
            links: Vec::new(),
            pages: PathBuf::from("../shared/corpus"),
            role: None,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--json" => options.json = true,
                "--shaped" => options.shaped = true,
                "--adaptive" => options.adaptive = true,
                "--stages" => options.stages = true,
                "--size" => options.size = size(&value()),
                "--lanes" => options.lanes = value().split(',').map(|lanes| lanes.parse().expect("lanes")).collect(),
                "--reps" => options.reps = value().parse().expect("a number"),
                "--extent-pages" => options.extent_pages = value().parse().expect("pages"),
                "--effort" => options.effort = value(),
                "--efforts" => options.efforts = value().split(',').map(String::from).collect(),
                "--links" => options.links = value().split(',').map(String::from).collect(),
                "--pages" => options.pages = value().into(),
                "--child" => options.role = Some(role(&mut words)),
                // Cargo passes --bench, criterion's filters may follow: none of our business.
                _ => {}
            }
        }
        options
    }
}

fn role(words: &mut impl Iterator<Item = String>) -> Role {
    let mut next = || words.next().expect("a complete role");
    Role {
        sends: next() == "source",
        peer: Peer::parse(&next()),
        case: Case::parse(&next()),
        lanes: next().parse().expect("lanes"),
        extent_pages: next().parse().expect("pages"),
        effort: next(),
        address: next(),
        identity: next().into(),
    }
}

fn size(text: &str) -> u64 {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => panic!("a size is a number with k, m or g"),
    };
    digits.parse::<u64>().expect("a size") << shift
}
