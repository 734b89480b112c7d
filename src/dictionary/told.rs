//! What is told of dictionaries: lines for people, fields for JSON.

use std::time::UNIX_EPOCH;

use dwcp_core::dictionary::Stored;
use serde::Serialize;

use crate::exit::Exit;
use crate::units;

/// One dictionary.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    name: String,
    id: String,
    bytes: usize,
    pages: u64,
    /// Seconds since 1970.
    made: u64,
}

impl Shown {
    pub(super) fn of(stored: &Stored) -> Self {
        Self {
            name: stored.name.to_string(),
            id: stored.dictionary.id().to_string(),
            bytes: stored.dictionary.bytes().len(),
            pages: stored.pages,
            made: stored.made.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    pub(super) fn line(&self) -> String {
        let id = self.id.get(..12).unwrap_or_default();
        let bytes = units::bytes(u64::try_from(self.bytes).unwrap_or(u64::MAX));
        format!("{}  {id}  {bytes} from {} pages", self.name, self.pages)
    }

    /// A line each, with its meaning first.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("bytes", self.bytes.to_string()),
            ("pages", self.pages.to_string()),
            ("made", format!("{} (seconds since 1970)", self.made)),
        ]
    }
}

/// One dictionary in a last line.
#[derive(Serialize)]
pub(super) struct ShownSummary<'a> {
    verdict: &'static str,
    #[serde(flatten)]
    shown: &'a Shown,
}

impl<'a> ShownSummary<'a> {
    pub(super) fn of(shown: &'a Shown) -> Self {
        Self { verdict: Exit::Ok.word(), shown }
    }
}

/// The last line about many.
#[derive(Serialize)]
pub(super) struct Listed {
    pub(super) verdict: &'static str,
    pub(super) dictionaries: usize,
    /// Those that cannot be used.
    pub(super) damaged: usize,
}
