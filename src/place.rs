use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dwcp_core::net::Records;
use dwcp_core::session::{Record, Standing};
use dwcp_core::wire::TransferId;

use crate::exit::{Exit, Failure};
use crate::receive;
use crate::state;

/// At which end we are.
#[derive(Debug)]
pub(crate) enum Place {
    /// The folder of a sender's state.
    Source(PathBuf),
    /// The directory of a receiver.
    Sink(PathBuf),
}

impl Place {
    /// What was named must be there: a mistyped path would hide a doubt.
    pub(crate) fn named(dir: Option<&Path>, state_dir: Option<PathBuf>) -> Result<Self, Failure> {
        let missing = |what: String, advice| Err(Failure::new(Exit::Failed, what).advise(advice));
        if let Some(dir) = dir {
            let (shown, advice) = (dir.display(), "Name with --dir the directory that `dwcp receive --dir` was given.");
            must_be_folder(dir, advice)?;
            if !is_folder(&dir.join(receive::RECORDS))? {
                let what = format!("no `dwcp receive` ever stored images in {shown}: it has no {}", receive::RECORDS);
                return missing(what, advice);
            }
            return Ok(Self::Sink(dir.to_owned()));
        }
        let given = state_dir.is_some();
        let folder = state::folder(state_dir)?;
        // The user's own folder is made by the first `dwcp send`.
        if given {
            let advice = "Name with --state-dir the folder that `dwcp send --state-dir` was given, or leave it out.";
            must_be_folder(&folder, advice)?;
        }
        Ok(Self::Source(folder))
    }

    pub(crate) fn records_folder(&self) -> PathBuf {
        match self {
            Self::Source(folder) => folder.clone(),
            Self::Sink(dir) => dir.join(receive::RECORDS),
        }
    }

    /// Nothing is made here: a sender's folder that does not exist holds no record.
    pub(crate) fn records(&self) -> Result<Records, Failure> {
        let folder = self.records_folder();
        if folder.is_dir() { Ok(Records::open(folder)?) } else { Ok(Records::none()) }
    }

    /// The words that name it on a command line.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Source(folder) => format!("--state-dir {}", folder.display()),
            Self::Sink(dir) => format!("--dir {}", dir.display()),
        }
    }

    /// Of a transfer in doubt.
    pub(crate) fn standing(&self) -> Standing {
        match self {
            Self::Source(_) => Standing::GaveUp,
            Self::Sink(_) => Standing::Ready,
        }
    }

    pub(crate) fn record(&self, records: &Records, transfer: TransferId) -> Result<Record, Failure> {
        records.load(transfer)?.filter(|record| record.standing == self.standing()).ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("transfer {transfer} is not in doubt in {}", self.records_folder().display()),
            )
            .advise("See `dwcp resolve`, with --state-dir or --dir as the transfer was begun.")
        })
    }
}

/// A folder that was named: says whether nothing or something else is there instead.
pub(crate) fn must_be_folder(path: &Path, advice: &str) -> Result<(), Failure> {
    if is_folder(path)? {
        return Ok(());
    }
    let shown = path.display();
    let what =
        if path.exists() { format!("{shown} is no directory") } else { format!("there is no directory {shown}") };
    Err(Failure::new(Exit::Failed, what).advise(advice))
}

/// Whether there is a folder; one that cannot be looked at may hold a doubt.
pub(crate) fn is_folder(path: &Path) -> Result<bool, Failure> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot look at {}: {error}", path.display()))
            .advise("Give this user the right to it, or run as one who has it.")),
    }
}
