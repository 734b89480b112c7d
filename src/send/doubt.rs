//! What was given up under the same name before: it is asked about, and sent nowhere else meanwhile.

use std::path::PathBuf;

use dwcp_core::guest::{ImageSource, root_of};
use dwcp_core::net::Records;
use dwcp_core::session::{Record, Standing};
use dwcp_core::wire::Digest;

use super::{of_offer_key, resolve_command};
use crate::cli::SendArgs;
use crate::exit::{Exit, Failure};
use crate::place::Place;
use crate::report::Report;
use crate::resolve;
use crate::state::{self, Shown};
use crate::words::Words;

/// A transfer of this name whose sender was killed between giving it up and hearing that the receiver has it: the receiver
/// says what became of it. If the image here is still that one, this is the end of the command. `None`: there is something to
/// send.
///
/// # Errors
/// The doubt stays, or is about another receiver: two hosts might run it.
pub(super) async fn settle(args: &SendArgs, report: &Report) -> Result<Option<Exit>, Failure> {
    let state_dir = state::folder(args.state_dir.clone())?;
    if !state_dir.is_dir() {
        return Ok(None);
    }
    let records = Records::open(&state_dir)?;
    for record in state::standing(&records, Standing::GaveUp)? {
        if record.name != args.name || is_at_work(&records, &record)? {
            report.warn(&format!(
                "warning: transfer {} ({}) is in doubt, unless another `dwcp send` hands it over just now; see: {}",
                record.transfer,
                record.name,
                resolve_command("", &state_dir)
            ));
            report.event("in-doubt", &Shown::from(&record));
            continue;
        }
        report.event("in-doubt", &Shown::from(&record));
        let (name, transfer) = (&record.name, record.transfer);
        return match receiver_of(&records, &record)? {
            Some(to) if to == args.to => {
                report.warn(&format!(
                    "{name} was given up to {to} before, as transfer {transfer}, and nobody heard whether it is there: asking"
                ));
                let place = Place::Source(state_dir.clone());
                let there = resolve::hear(&place, transfer, &args.to, &args.credentials).await?;
                if is_another(args.last_image(), there.root).await {
                    report.warn(&format!("{name} of then is there; the image here is another one, and is sent now"));
                    continue;
                }
                Ok(Some(resolve::tell_there(&there, &args.to, report)))
            }
            other => {
                let whom = other.as_deref().unwrap_or("another receiver");
                let what = format!(
                    "{name} is in doubt: transfer {transfer} gave it up to {whom}, and nobody heard whether it is there"
                );
                let how = match other {
                    Some(_) => format!("dwcp transfers resume {transfer} --state-dir {}", state_dir.display()),
                    None => format!("{} --to HOST:PORT ...", resolve_command(&transfer.to_string(), &state_dir)),
                };
                let to = &args.to;
                Err(Failure::new(Exit::InDoubt, what).advise(format!(
                    "Sent to {to} as well it might run twice. Ask the one that may have it first: {how}"
                )))
            }
        };
    }
    Ok(None)
}

/// Whether an image is there, and has another root. It is read for that.
async fn is_another(image: PathBuf, root: Digest) -> bool {
    let read = move || ImageSource::open(&image).and_then(|image| root_of(&image));
    matches!(tokio::task::spawn_blocking(read).await, Ok(Ok(found)) if found != root)
}

/// Another `dwcp send` of this node is at it.
pub(crate) fn is_at_work(records: &Records, record: &Record) -> Result<bool, Failure> {
    Ok(records.offers()?.iter().any(|offered| offered.transfer == record.transfer && offered.busy))
}

/// Whom it was given to, as somebody typed it.
fn receiver_of(records: &Records, record: &Record) -> Result<Option<String>, Failure> {
    let offers = records.offers()?;
    let key = offers.iter().find(|offered| offered.transfer == record.transfer).map(|offered| offered.key.as_str());
    let offered = key.and_then(of_offer_key).map(|(_, to)| to);
    let typed = || Some(Words::of(records, record.transfer)?.parse().ok()?.to);
    Ok(offered.or_else(typed))
}
