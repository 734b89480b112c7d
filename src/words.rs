//! The command line of a `dwcp send`, remembered beside its offer so that it can be run again. No secret is ever on a
//! command line: identities are named by their files.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwcp_core::net::Records;
use dwcp_core::wire::TransferId;
use serde::{Deserialize, Serialize};

use crate::cli::{Cli, Command, SendArgs};
use crate::exit::{Exit, Failure};

/// What somebody typed, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Words {
    /// Paths among the words are relative to it.
    folder: PathBuf,
    words: Vec<String>,
}

impl Words {
    /// Of this process. `None` when some of them are no text.
    pub(crate) fn of_process() -> Option<Self> {
        let words = std::env::args_os().map(|word| word.into_string().ok()).collect::<Option<_>>()?;
        Some(Self { folder: std::env::current_dir().ok()?, words })
    }

    /// Beside the offer, until that is forgotten.
    pub(crate) fn remember(&self, records: &Records, transfer: TransferId) -> Result<(), Failure> {
        let text = serde_json::to_string(self)
            .map_err(|error| Failure::new(Exit::Failed, format!("the command line cannot be remembered: {error}")))?;
        Ok(records.note(transfer, &text)?)
    }

    /// Of the `dwcp send` that began a transfer. `None` when nobody remembered them, or a crash lost them.
    pub(crate) fn of(records: &Records, transfer: TransferId) -> Option<Self> {
        let noted = records.noted(transfer).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was typed cannot be read");
            None
        });
        serde_json::from_str(&noted?).ok()
    }

    /// Where they were typed.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What they ask for; paths in it are relative to [`folder`](Self::folder).
    pub(crate) fn parse(&self) -> Result<SendArgs, Failure> {
        let not_ours = |why: String| {
            Failure::new(Exit::Failed, format!("`{}` cannot be run again: {why}", self.line()))
                .advise("Send it with words of your own; the same --as and --to make it the same transfer.")
        };
        match Cli::try_parse_from(&self.words).map_err(|error| not_ours(error.kind().to_string()))?.command {
            Command::Send(args) => Ok(args),
            _ => Err(not_ours("it is no `dwcp send`".to_owned())),
        }
    }

    /// A line for a shell.
    pub(crate) fn line(&self) -> String {
        self.words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_as_a_shell_reads_them() {
        let words = ["dwcp", "send", "--as", "vm1", "my disk.img", "it's", ""].map(str::to_owned).to_vec();
        let words = Words { folder: "/".into(), words };
        assert_eq!(words.line(), "dwcp send --as vm1 'my disk.img' 'it'\\''s' ''");
        assert!(words.parse().is_err_and(|failure| failure.what.contains("cannot be run again")));
        let list = Words { words: ["dwcp", "transfers", "list"].map(str::to_owned).to_vec(), ..words };
        assert!(list.parse().is_err_and(|failure| failure.what.contains("no `dwcp send`")));
    }
}
