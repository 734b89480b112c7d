//! One transfer on its way in, followed to its end.

use std::path::PathBuf;

use dwcp_core::GuestError;
use dwcp_core::guest::ImageFolder;
use dwcp_core::net::Session;
use dwcp_core::session::{Outcome, Owner, SessionError};
use dwcp_core::wire::Digest;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::keeping::Image;
use super::{Peer, Stop};
use crate::bars::Bars;
use crate::dual::Handovers;
use crate::exit::{Exit, Failure};
use crate::pace::Pace;
use crate::report::{Received, Report};
use crate::send::Step;
use crate::state;
use crate::units;

/// A transfer that ended.
pub(super) struct Done {
    pub(super) exit: Exit,
    /// Its pages wait for the next receiver, which is no failure of this one.
    pub(super) parked: bool,
    /// Another session goes on with it.
    pub(super) superseded: bool,
    /// A baseline that cannot be used.
    pub(super) spoiled: Option<Digest>,
    /// What is here now.
    pub(super) image: Option<Image>,
}

#[derive(Serialize)]
pub(super) struct Parked {
    pub(super) transfer: String,
}

/// Follows one transfer to its end.
pub(super) struct Watch {
    pub(super) report: Report,
    pub(super) peer: Peer,
    pub(super) dir: PathBuf,
    pub(super) folder: ImageFolder,
}

#[derive(Serialize)]
struct Ended<'a> {
    verdict: &'a str,
    transfer: &'a str,
    name: &'a str,
    /// Nothing travelled: it was handed over before, and its sender asked what became of it.
    asked: bool,
    #[serde(flatten)]
    received: Received,
    error: Option<String>,
}

impl Watch {
    /// The image is here, but something was left undone that matters when the sender asks again.
    fn warn(&self, transfer: &str, error: &str) {
        let (dir, name) = (self.dir.display(), &self.peer.name);
        self.report.warn(&format!(
            "warning: transfer {transfer} ({name}) arrived, but its end went wrong: {error}\n         \
             If `dwcp resolve --dir {dir}` still lists it, mend that, stop this receiver, and run: \
             dwcp resolve {transfer} --dir {dir} --owner sink --fenced"
        ));
        let (transfer, error) = (Some(transfer.to_owned()), error.to_owned());
        self.report.event("warning", &state::Warning { transfer, error });
    }

    /// Tells how it ends. Whoever asks for its place after that is not answered.
    pub(super) async fn until_over(
        self,
        mut session: Session,
        mut stopped: watch::Receiver<Stop>,
        mut superseded: mpsc::Receiver<oneshot::Sender<bool>>,
    ) -> Done {
        let (started, transfer) = (Instant::now(), self.peer.transfer.to_string());
        let mut progress = session.progress();
        let mut bars = Bars::new(&self.report.bars, self.peer.name.as_str());
        let mut pace = Pace::since(started);
        let mut handovers = Handovers::default();
        let outcome = loop {
            tokio::select! {
                outcome = session.outcome() => break outcome,
                Ok(()) = progress.changed() => {
                    let now = progress.borrow_and_update().clone();
                    bars.sink(&now);
                    handovers.tell(&self.report, &transfer, &now);
                    if let Some(rate) = pace.due(Instant::now(), now.pages_settled) {
                        self.report.event("progress", &Step::at_sink(&transfer, &now, rate));
                    }
                }
                Some(ends) = superseded.recv() => {
                    let _ = ends.send(session.supersede().await);
                }
                Ok(()) = stopped.changed() => match *stopped.borrow_and_update() {
                    Stop::No => {}
                    Stop::Retire => session.retire(),
                    Stop::Cut => session.cancel(),
                },
            }
        };
        bars.end();
        let (received, root) = {
            let progress = progress.borrow();
            let received = Received::of(&progress, self.peer.held, started.elapsed());
            let received = self.peer.asks.map_or(received.clone(), |bytes| received.asked_about(bytes));
            (received, progress.root)
        };
        let arrived = outcome.owner == Owner::Sink && self.peer.asks.is_none();
        let image =
            arrived.then(|| Image { transfer: transfer.clone(), path: self.dir.join(self.peer.name.as_str()), root });
        let kept = self.kept(&outcome).await;
        Done { image, ..self.tell(&transfer, &outcome, received, kept) }
    }

    /// Bytes that are kept of what did not come whole, so that they need not travel again.
    async fn kept(&self, outcome: &Outcome) -> u64 {
        if outcome.owner != Owner::Source || self.peer.asks.is_some() {
            return 0;
        }
        let (folder, transfer) = (self.folder.clone(), self.peer.transfer);
        let parked = tokio::task::spawn_blocking(move || folder.parked_of(transfer)).await;
        parked.ok().flatten().map_or(0, |parked| parked.held_bytes.min(parked.bytes))
    }

    /// What became of what had come, and what is next.
    fn advice(&self, transfer: &str, kept: u64) -> String {
        let theirs = "Nothing of it became visible here; it is the sender's as before.";
        if kept == 0 {
            return theirs.to_owned();
        }
        format!(
            "{theirs} {} are kept for a day, and the next send of it goes on with them (to throw them away: dwcp transfers abort \
             {transfer} --dir {})",
            units::bytes(kept),
            self.dir.display()
        )
    }

    fn tell(&self, transfer: &str, outcome: &Outcome, received: Received, kept: u64) -> Done {
        let name = &self.peer.name;
        // Visible here all the same when only the last words were lost.
        let exit = if outcome.owner == Owner::Sink { Exit::Ok } else { Exit::of(outcome) };
        let error = outcome.error.as_ref().map(ToString::to_string);
        let failure = |what: &str, advice: String| {
            self.report.trouble(&Failure::new(exit, format!("transfer {transfer} ({name}) {what}")).advise(advice));
        };
        let (at_source, asked) = (outcome.owner == Owner::Source, self.peer.asks.is_some());
        let parked = at_source && matches!(outcome.error, Some(SessionError::ShuttingDown));
        let superseded = at_source && matches!(outcome.error, Some(SessionError::Superseded));
        match exit {
            _ if superseded => self.report.say(&format!(
                "transfer {transfer} ({name}): this session was superseded, because its sender came back with a newer \
                 one, which goes on with what is stored; nothing to do"
            )),
            _ if parked => {
                self.report.say(&format!("transfer {transfer} ({name}) is parked: it goes on when this receiver is started again and its sender comes back within a day"));
                self.report.event("parked", &Parked { transfer: transfer.to_owned() });
            }
            Exit::Ok if asked && error.is_none() => self.report.say(&format!(
                "transfer {transfer} ({name}) was handed over before: its sender asked, and was told so; nothing to do"
            )),
            Exit::Ok => {
                let path = self.dir.join(name.as_str());
                self.report.say(&format!("{} is here, verified: {}", path.display(), received.line()));
                if let Some(error) = &error {
                    self.warn(transfer, error);
                }
            }
            Exit::InDoubt => failure(
                &format!(
                    "is in doubt: it is stored here, but may not be used before its sender says so: {}",
                    error.as_deref().unwrap_or("no reason given")
                ),
                format!(
                    "Start the receiver again and let the sender ask, or see: dwcp resolve --dir {}",
                    self.dir.display()
                ),
            ),
            _ => failure(
                &format!("ended: {}", error.as_deref().unwrap_or("no reason given")),
                self.advice(transfer, kept),
            ),
        }
        self.report
            .event("transfer", &Ended { verdict: exit.word(), transfer, name: name.as_str(), asked, received, error });
        Done { exit, parked, superseded, spoiled: spoiled(outcome), image: None }
    }
}

/// The baseline that failed a transfer.
fn spoiled(outcome: &Outcome) -> Option<Digest> {
    match &outcome.error {
        Some(SessionError::Guest(GuestError::Baseline { digest, .. })) => Some(*digest),
        _ => None,
    }
}
