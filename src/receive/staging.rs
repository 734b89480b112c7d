//! An offer on its way to a session: its staging file is made, or found again, on a thread that may wait for a disk. How long
//! that takes a peer may choose, by what it left here before; nobody else waits for it. What a question is about is found
//! again there, too, and what nobody needs any more is removed.

use std::cell::Cell;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::guest::ImageFolder;
use dwcp_core::net::{IncomingAsk, IncomingOffer, Records, Session};
use dwcp_core::session::SinkConfig;
use dwcp_core::wire::TransferId;
use dwcp_core::{Guest, GuestError};
use serde::Serialize;

use super::turns::{Turn, Turns};
use super::{Peer, now, prune, sink_config, warm};
use crate::baseline::Shelf;
use crate::cli::ReceiveArgs;
use crate::report::Report;

/// Who looks at what is left of an image (`dwcp transfers list`), or is just closing it, has it for a moment: a second in all.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Makes sessions of offers.
#[derive(Debug)]
pub(super) struct Stager {
    folder: ImageFolder,
    records: Records,
    dir: PathBuf,
    /// Device and inode of its directory.
    dir_id: (u64, u64),
    /// Baselines that senders may name.
    shelf: Option<Arc<Shelf>>,
    config: SinkConfig,
    report: Report,
    turns: Arc<Turns>,
}

/// What became of an offer.
pub(super) enum Taken {
    Session {
        session: Session,
        peer: Peer,
    },
    Refused {
        incoming: Box<IncomingOffer>,
        error: GuestError,
    },
    /// Its thread died, and its sender was told so by a closed connection.
    Died(TransferId),
    /// What was promised cannot be found, and its sender and an operator were told so: the doubt stays.
    Lost(TransferId),
}

#[derive(Serialize)]
struct GoingOn<'a> {
    transfer: String,
    name: &'a str,
    bytes_held: u64,
}

#[derive(Serialize)]
struct Accepted<'a> {
    transfer: String,
    name: &'a str,
    peer: String,
    bytes: u64,
}

impl Stager {
    pub(super) fn new(
        args: &ReceiveArgs,
        dir_id: (u64, u64),
        (folder, records): (&ImageFolder, &Records),
        shelf: Option<&Arc<Shelf>>,
        report: &Report,
    ) -> Self {
        Self {
            folder: folder.clone(),
            records: records.clone(),
            dir: args.dir.clone(),
            dir_id,
            shelf: shelf.cloned(),
            config: sink_config(args),
            report: report.clone(),
            turns: Turns::new(),
        }
    }

    /// Where images are made.
    pub(super) fn folder(&self) -> &ImageFolder {
        &self.folder
    }

    /// Takes an offer whose name is free. `others`: transfers that are under way or promised.
    pub(super) async fn take(self: Arc<Self>, incoming: IncomingOffer, others: HashSet<TransferId>) -> Taken {
        let others = Arc::new(others);
        let mut taken = Arc::clone(&self).take_once(incoming, &others).await;
        for _ in 0..LOOKS {
            let Taken::Refused { incoming, error: GuestError::Busy { .. } } = taken else { break };
            tokio::time::sleep(LOOK_AGAIN).await;
            taken = Arc::clone(&self).take_once(*incoming, &others).await;
        }
        taken
    }

    async fn take_once(self: Arc<Self>, incoming: IncomingOffer, others: &Arc<HashSet<TransferId>>) -> Taken {
        let (transfer, others) = (incoming.offer().transfer, Arc::clone(others));
        let turn = self.turns.take(incoming.peer()).await;
        let taking = tokio::task::spawn_blocking(move || {
            // Its thread is busy until then, whoever waits for it no more.
            let _turn = turn;
            self.take_now(incoming, &others)
        });
        taking.await.unwrap_or(Taken::Died(transfer))
    }

    /// Answers a question with what was promised, which stays where it is whatever is swept away meanwhile: its record says so.
    pub(super) async fn reopen(self: Arc<Self>, incoming: IncomingAsk, peer: Peer) -> Taken {
        let transfer = peer.transfer;
        let reopening = tokio::task::spawn_blocking(move || self.reopen_now(incoming, peer));
        reopening.await.unwrap_or(Taken::Lost(transfer))
    }

    fn reopen_now(&self, incoming: IncomingAsk, peer: Peer) -> Taken {
        match self.folder.reopen(incoming.record()) {
            Ok(staging) => Taken::Session { session: incoming.accept(Arc::new(staging), self.config.clone()), peer },
            // The record stays, and so does the doubt: an operator must look.
            Err(error) => {
                let Peer { transfer, name, .. } = peer;
                self.report.warn(&format!(
                    "error: transfer {transfer} ({name}) was promised, but {error}; see `dwcp resolve --dir {}`",
                    self.dir.display()
                ));
                incoming.refuse("what was promised cannot be found here; its operator must look");
                Taken::Lost(transfer)
            }
        }
    }

    /// The right to sweep, while nothing is staged, nor about to be: what an offer begins to go on with may be as old as what
    /// is removed. What comes meanwhile waits for one file at most.
    pub(super) fn sweeping(&self) -> Option<Turn> {
        self.turns.all()
    }

    /// Removes what was cut off more than a day ago, and old records. `others`: transfers that are under way or promised. True:
    /// an offer came meanwhile, and there may be more to remove.
    pub(super) async fn sweep(self: Arc<Self>, right: Turn, others: HashSet<TransferId>) -> bool {
        let sweeping = tokio::task::spawn_blocking(move || {
            let gave_way = self.sweep_now(&others);
            // Records are in nobody's way, and may be many.
            drop(right);
            prune(&self.records);
            gave_way
        });
        sweeping.await.unwrap_or(false)
    }

    fn sweep_now(&self, others: &HashSet<TransferId>) -> bool {
        let gave_way = Cell::new(false);
        let kept = |transfer| {
            gave_way.set(gave_way.get() || self.turns.are_wanted());
            gave_way.get() || others.contains(&transfer) || !matches!(self.records.load(transfer), Ok(None))
        };
        match self.folder.sweep(now(), kept) {
            Ok(swept) => {
                for file in swept.removed {
                    tracing::info!(file, "removed what was cut off more than a day ago");
                }
            }
            Err(error) => tracing::warn!(%error, "what was cut off long ago cannot be removed"),
        }
        gave_way.get()
    }

    fn take_now(&self, incoming: IncomingOffer, others: &HashSet<TransferId>) -> Taken {
        let (guest, held) = match self.stage(&incoming, others) {
            Ok(staged) => staged,
            Err(error) => return Taken::Refused { incoming: Box::new(incoming), error },
        };
        let offer = incoming.offer();
        let name = offer.name.clone();
        let peer = Peer { transfer: offer.transfer, name, peer: incoming.peer(), held, asks: None };
        let Peer { transfer, name, peer: whose, .. } = &peer;
        tracing::info!(%transfer, %name, peer = %whose, address = %incoming.address(), "accepted");
        let (transfer, name, bytes) = (transfer.to_string(), name.as_str(), offer.layout.bytes());
        self.report.event("started", &Accepted { transfer, name, peer: whose.to_string(), bytes });
        Taken::Session { session: self.accept(guest, incoming, &peer), peer }
    }

    /// Where an image is made, and bytes of it that are here from before.
    fn stage(
        &self,
        incoming: &IncomingOffer,
        others: &HashSet<TransferId>,
    ) -> Result<(Arc<dyn Guest>, u64), GuestError> {
        let offer = incoming.offer();
        self.still_there()?;
        let staging = self.folder.go_on(offer, incoming.peer(), |transfer| others.contains(&transfer))?;
        let held = staging.held_bytes();
        if held > 0 {
            let name = offer.name.as_str();
            self.report.say(&format!("going on with {name}: {held} bytes of it are here already"));
            self.report.event("going-on", &GoingOn { transfer: offer.transfer.to_string(), name, bytes_held: held });
        }
        Ok((Arc::new(staging), held))
    }

    /// Images go below an open handle: another directory in the place of ours would never get one.
    fn still_there(&self) -> Result<(), GuestError> {
        if std::fs::metadata(&self.dir).is_ok_and(|now| (now.dev(), now.ino()) == self.dir_id) {
            return Ok(());
        }
        Err(GuestError::Other(format!(
            "{} was removed or exchanged while this receiver ran, and nothing can be stored there; it must be started again",
            self.dir.display()
        )))
    }

    /// With a baseline that both ends have, if there is one.
    fn accept(&self, guest: Arc<dyn Guest>, incoming: IncomingOffer, peer: &Peer) -> Session {
        let named = !incoming.offer().baselines.is_empty();
        match &self.shelf {
            Some(shelf) if named => {
                let (session, found) = warm::take(shelf, guest, incoming, self.config.clone());
                found.tell(peer, shelf, &self.report);
                return session;
            }
            Some(_) => {
                let why = format!("the sender of {} names no baseline", peer.name);
                warm::tell_none(peer, &why, &self.report);
            }
            None if named => {
                let why = format!(
                    "the sender of {} names a baseline, and this receiver has no store (--baseline-store)",
                    peer.name
                );
                warm::tell_none(peer, &why, &self.report);
            }
            None => {}
        }
        incoming.accept(guest, self.config.clone())
    }
}
