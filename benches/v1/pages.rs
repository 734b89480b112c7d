use std::path::PathBuf;
use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::{Guest, Layout, RegionId};

use crate::corpus;

/// What is moved.
#[derive(Clone, Debug)]
pub enum Pages {
    /// So many bytes that nothing makes smaller.
    Random(usize),
    /// The real pages of `tests/data`, sixteen times: farther apart than either version looks.
    Sample,
    /// The first snapshot of a workload.
    Corpus(PathBuf, String),
}

impl Pages {
    pub fn word(&self) -> String {
        match self {
            Self::Random(bytes) => format!("random:{bytes}"),
            Self::Sample => "sample".into(),
            Self::Corpus(folder, name) => format!("corpus:{}:{name}", folder.display()),
        }
    }

    pub fn parse(word: &str) -> Self {
        let parts: Vec<&str> = word.splitn(3, ':').collect();
        match parts[..] {
            ["random", bytes] => Self::Random(bytes.parse().expect("bytes")),
            ["sample"] => Self::Sample,
            ["corpus", folder, name] => Self::Corpus(folder.into(), name.to_owned()),
            _ => panic!("unknown pages {word}"),
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Random(_) => "incompressible".into(),
            Self::Sample => "guest pages".into(),
            Self::Corpus(_, name) => name.clone(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Random(bytes) => {
                let mut plain = vec![0; *bytes];
                blake3::Hasher::new().finalize_xof().fill(&mut plain);
                plain
            }
            Self::Sample => {
                let mut plain = vec![0_u8; 1920 * 4096];
                let frame = include_bytes!("../../tests/data/guest-pages.zst");
                let bytes = zstd_safe::decompress(plain.as_mut_slice(), frame).expect("tests/data/guest-pages.zst");
                assert_eq!(bytes, plain.len());
                plain.repeat(16)
            }
            Self::Corpus(folder, name) => corpus::first_snapshot(folder, name),
        }
    }

    /// A guest that is full of them.
    pub fn guest(&self) -> Arc<Memory> {
        let bytes = self.bytes();
        let guest = Memory::new(Layout::new(&[bytes.len() as u64]).expect("a layout"));
        guest.write(RegionId(0), 0, &bytes).expect("a write");
        Arc::new(guest)
    }

    /// A guest that is all zeros, whose memory has been touched.
    pub fn blank(&self) -> Arc<Memory> {
        let bytes = self.bytes().len();
        let guest = Memory::new(Layout::new(&[bytes as u64]).expect("a layout"));
        for page in 0..bytes / 4096 {
            guest.poke(RegionId(0), page as u64 * 4096, 1);
            guest.poke(RegionId(0), page as u64 * 4096, 0);
        }
        Arc::new(guest)
    }
}
