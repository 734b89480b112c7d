//! What is told of dictionaries: lines for people, fields for JSON.

use std::time::UNIX_EPOCH;

use dwcp_core::dictionary::Stored;
use dwcp_core::session::Progress;
use dwcp_core::wire::Name;
use dwcp_hde::{DictionaryId, Method};
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
            ("made", units::ago(self.made)),
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

/// What a transfer did with a dictionary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Used {
    /// Null: the receiver holds none of ours.
    id: Option<String>,
    /// Null if it is not in the store any more.
    name: Option<String>,
    pages: u64,
}

impl Used {
    pub(super) fn of(progress: &Progress, name: impl FnOnce(DictionaryId) -> Option<Name>) -> Self {
        let id = progress.dictionary.map(|digest| DictionaryId(digest.0));
        Self {
            id: id.map(|id| id.to_string()),
            name: id.and_then(name).map(|name| name.to_string()),
            pages: progress.methods.of(Method::Dictionary).pages,
        }
    }

    pub(crate) fn line(&self) -> String {
        let Some(id) = &self.id else { return "  dictionary   none: the receiver holds none of ours".into() };
        let (id, name) = (id.get(..12).unwrap_or_default(), self.name.as_deref().unwrap_or("-"));
        format!("  dictionary   {name} (id {id}), used for {} pages", self.pages)
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
