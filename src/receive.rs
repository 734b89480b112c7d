mod names;
mod warm;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dwcp_core::guest::{ImageFolder, Memory};
use dwcp_core::net::{
    Endpoint, Fingerprint, Incoming, IncomingAsk, IncomingOffer, Listener, Listing, Records, Session,
};
use dwcp_core::session::{Outcome, Owner, SessionError, SinkConfig, Standing};
use dwcp_core::wire::{Digest, GuestKind, Name, TransferId};
use dwcp_core::{Guest, GuestError, Layout};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::warm::Taken;
use crate::bars::Bars;
use crate::baseline::{Keeper, Shelf};
use crate::cli::ReceiveArgs;
use crate::dual::{Handovers, dual};
use crate::exit::{Exit, Failure};
use crate::identity;
use crate::interrupt::Interrupts;
use crate::legacy::Port;
use crate::pace::Pace;
use crate::report::{Received, Report};
use crate::send::Step;
use crate::state::{self, Shown};
use crate::statistics;

/// Folder below `--dir` for what this receiver has promised.
pub(crate) const RECORDS: &str = ".dwcp";
/// Folder below that one for whom this receiver refuses.
pub(crate) const QUARANTINE: &str = "quarantine";

/// `dwcp receive`.
pub(crate) async fn run(args: ReceiveArgs, report: &Report) -> Result<Exit, Failure> {
    // What keeps images may make the store.
    let keeper = Keeper::open(&args.keep, &args.baseline, report)?;
    let shelf = Shelf::open(&args.baseline, keeper.is_some(), report)?.map(Arc::new);
    let records = args.dir.join(RECORDS);
    // Held as long as this process lives.
    let _lock = claim(&args.dir, &records)?;
    let endpoint = identity::endpoint(&args.credentials)?.with_records(&records)?.with_lanes(args.lanes.get());
    let endpoint = args.dictionaries.of(dual(endpoint, &args.flag)?)?;
    let endpoint = endpoint.with_quarantine(records.join(QUARANTINE))?;
    let mut names = HashMap::new();
    let dir_id = std::fs::metadata(&args.dir).map(|dir| (dir.dev(), dir.ino())).unwrap_or_default();
    let folder = ImageFolder::open(&args.dir)?.replacing(args.replace).sparse(args.sparse);
    recover(&args.dir, &folder, &endpoint, report, &mut names)?;
    let (endpoint, legacy) = Port::open(&args, endpoint, &folder, &records, report)?;
    names.extend(legacy.as_ref().map(Port::name));
    let mut interrupts = Interrupts::watch()?;
    let mut listener = endpoint.listen(&args.listen).await?;
    let address = listener.local_addr().to_string();
    report.say(&format!("listening on {address}, storing in {}", args.dir.display()));
    report.event("listening", &Listening { address, dir: args.dir.display().to_string() });
    let (stop, stopped) = watch::channel(Stop::No);
    let records = endpoint.records().clone();
    let mut desk = Desk {
        args,
        report,
        dir_id,
        names,
        folder,
        records,
        shelf,
        keeper,
        taking: JoinSet::new(),
        held: HashMap::new(),
        waiting: HashMap::new(),
        running: JoinSet::new(),
        legacy,
        stopped,
        tally: Tally::default(),
    };
    desk.serve(&mut listener, &mut interrupts, &stop).await;
    desk.stop_legacy().await;
    statistics::tell(&endpoint, statistics::End::Sink, report);
    Ok(desk.close())
}

#[derive(Serialize)]
struct Listening {
    address: String,
    dir: String,
}

/// One receiver to a directory: two would sweep away each other's staging files.
fn claim(dir: &Path, records: &Path) -> Result<File, Failure> {
    let shown = dir.display();
    let unusable = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("cannot store images in {shown}: {error}"))
            .advise("Name a directory with --dir that exists and that this user may write.")
    };
    let metadata = std::fs::metadata(dir).map_err(unusable)?;
    if !metadata.is_dir() {
        return Err(unusable(std::io::Error::from(std::io::ErrorKind::NotADirectory)));
    }
    // Also proves that the directory can be written, before a peer waits for it.
    state::make(records)?;
    let probe = records.join("probe");
    File::create(&probe).and_then(|_| std::fs::rename(&probe, dir.join(".dwcp-probe"))).map_err(unusable)?;
    std::fs::remove_file(dir.join(".dwcp-probe")).map_err(unusable)?;
    state::claim(records).map_err(unusable)?.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("another `dwcp receive` stores images in {shown}"))
            .advise("Stop it, or name another directory with --dir.")
    })
}

/// How long a sender that gave up may come back and be told that its image is here. spec: P-4
pub(crate) const RAN_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Records of what was handed over are small, but nobody else ever removes them.
fn prune(records: &Records) {
    match records.prune(now(), RAN_KEPT) {
        Ok(pruned) => {
            for transfer in pruned {
                tracing::info!(%transfer, "forgot a transfer that was handed over more than 7 days ago");
            }
        }
        // It costs some disk, no more.
        Err(error) => tracing::warn!(%error, "old records cannot be removed"),
    }
}

#[expect(clippy::disallowed_methods, reason = "files tell their age by the wall clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

#[derive(Serialize)]
struct Parked {
    transfer: String,
}

#[derive(Serialize)]
struct GoingOn<'a> {
    transfer: String,
    name: &'a str,
    bytes_held: u64,
}

/// What an earlier process left: promises are kept, the rest is swept away.
fn recover(
    dir: &Path,
    folder: &ImageFolder,
    endpoint: &Endpoint,
    report: &Report,
    names: &mut HashMap<TransferId, Name>,
) -> Result<(), Failure> {
    prune(endpoint.records());
    let listing = state::look(endpoint.records(), Standing::Ready)?;
    for damaged in &listing.damaged {
        state::tell_damaged(damaged, report);
    }
    for record in listing.records {
        report.warn(&format!(
            "note: transfer {} ({}) is stored here and waits for its sender {}, or for `dwcp resolve --dir {}`",
            record.transfer,
            record.name,
            record.peer,
            dir.display()
        ));
        report.event("ready", &Shown::from(&record));
        names.insert(record.transfer, record.name);
    }
    // What belongs to a record that cannot be read may have been promised.
    let unread = |transfer| listing.damaged.iter().any(|damaged| damaged.transfer == Some(transfer));
    let swept = folder.sweep(now(), |transfer| names.contains_key(&transfer) || unread(transfer))?;
    for file in swept.removed {
        tracing::info!(file, "removed what an earlier receiver did not finish");
    }
    for transfer in swept.parked {
        report.say(&format!("transfer {transfer} was cut off: it goes on when its sender comes back within a day"));
        report.event("parked", &Parked { transfer: transfer.to_string() });
    }
    Ok(())
}

/// Takes offers and keeps them apart.
struct Desk<'a> {
    args: ReceiveArgs,
    report: &'a Report,
    /// Device and inode of its directory.
    dir_id: (u64, u64),
    /// Names that are taken: by a transfer that runs, or by one that was promised.
    names: HashMap<TransferId, Name>,
    folder: ImageFolder,
    records: Records,
    /// Baselines that senders may name.
    shelf: Option<Arc<Shelf>>,
    /// Makes baselines of what arrives.
    keeper: Option<Keeper>,
    /// Offers that are being taken.
    taking: JoinSet<Taken>,
    /// Sessions that are followed.
    held: HashMap<TransferId, Held>,
    /// Offers for the end of the session that holds their name.
    waiting: HashMap<TransferId, IncomingOffer>,
    running: JoinSet<Done>,
    /// What comes over version 1, if that is taken.
    legacy: Option<Port>,
    stopped: watch::Receiver<Stop>,
    tally: Tally,
}

/// How a receiver is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    /// Finish what has come whole, park the rest.
    Retire,
    /// The time for that is over.
    Cut,
}

/// A session that is followed, and how to ask it for its place.
struct Held {
    peer: Fingerprint,
    supersede: mpsc::Sender<oneshot::Sender<bool>>,
}

/// A transfer that ended.
struct Done {
    transfer: TransferId,
    exit: Exit,
    /// Its pages wait for the next receiver, which is no failure of this one.
    parked: bool,
    /// Another session goes on with it.
    superseded: bool,
    /// A baseline that cannot be used.
    spoiled: Option<Digest>,
}

#[derive(Debug, Default)]
struct Tally {
    received: u64,
    failed: u64,
    parked: u64,
    refused: u64,
    /// Of a transfer in doubt, or else of the last that failed.
    exit: Option<Exit>,
    interrupted: bool,
}

impl Tally {
    fn count(&mut self, exit: Exit, parked: bool) {
        if exit == Exit::Ok {
            self.received += 1;
            return;
        }
        *if parked { &mut self.parked } else { &mut self.failed } += 1;
        // A doubt is what an operator must hear of, whatever else fails later.
        self.exit = self.exit.filter(|&worst| worst == Exit::InDoubt).or(Some(exit));
    }
}

/// The end of what comes over version 1.
async fn over_legacy(legacy: &mut Option<Port>) -> Exit {
    match legacy {
        Some(port) => port.next().await,
        None => std::future::pending().await,
    }
}

#[derive(Serialize)]
struct Refused<'a> {
    transfer: String,
    name: &'a str,
    peer: String,
    error: &'a str,
}

impl Desk<'_> {
    /// Until somebody interrupts it, or one transfer is done with `--once`.
    async fn serve(&mut self, listener: &mut Listener, interrupts: &mut Interrupts, stop: &watch::Sender<Stop>) {
        let mut open = true;
        let mut limit = None;
        loop {
            tokio::select! {
                incoming = listener.accept(), if open => match incoming {
                    Some(Incoming::Offer(offer)) => {
                        if let Some(offer) = self.taken_over(offer).await {
                            self.offered(offer);
                        }
                    }
                    Some(Incoming::Ask(ask)) => self.asked(ask),
                    Some(_) => {}
                    None => open = false,
                },
                Some(taken) = self.taking.join_next() => self.taken(taken.ok()),
                Some(done) = self.running.join_next() => {
                    let done = done.ok();
                    self.done(done.as_ref());
                    let goes_on = done.is_some_and(|done| done.superseded);
                    if self.args.once && !goes_on || (!open && self.is_idle()) {
                        return;
                    }
                }
                exit = over_legacy(&mut self.legacy), if open => {
                    self.tally.count(exit, false);
                    if self.args.once {
                        return;
                    }
                }
                () = interrupts.next() => {
                    if self.tally.interrupted || self.is_idle() {
                        return;
                    }
                    self.tally.interrupted = true;
                    open = false;
                    listener.close();
                    self.report.warn("finishing what has come whole, parking the rest; once more to leave at once");
                    limit = Some(Instant::now() + self.args.grace);
                    let _ = stop.send(Stop::Retire);
                }
                () = passed(limit) => {
                    limit = None;
                    let _ = stop.send(Stop::Cut);
                }
                else => return,
            }
        }
    }

    /// A sender that was killed comes back under the name that its lost session still holds: that one
    /// ends first, and gives the offer back through [`Done`]. Otherwise the offer comes back at once.
    async fn taken_over(&mut self, incoming: IncomingOffer) -> Option<IncomingOffer> {
        let (name, peer) = (&incoming.offer().name, incoming.peer());
        if self.held.contains_key(&incoming.offer().transfer) {
            // The session that its source lost is over, but we have not been told so yet.
            self.waiting.insert(incoming.offer().transfer, incoming);
            return None;
        }
        let holder = self.names.iter().find(|(_, taken)| *taken == name).map(|(transfer, _)| *transfer);
        let Some((transfer, held)) = holder.and_then(|transfer| Some((transfer, self.held.get(&transfer)?))) else {
            return Some(incoming);
        };
        // With --once there is no next one, and one that waits is enough.
        if held.peer != peer || self.args.once || self.waiting.contains_key(&transfer) {
            return Some(incoming);
        }
        let (ends, answer) = oneshot::channel();
        if held.supersede.send(ends).await.is_err() || !answer.await.unwrap_or(false) {
            return Some(incoming);
        }
        tracing::info!(%transfer, %peer, "its lost session is over, because its sender came back");
        self.waiting.insert(transfer, incoming);
        None
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.taking.is_empty()
    }

    fn offered(&mut self, incoming: IncomingOffer) {
        match self.stage(&incoming) {
            Ok((guest, held)) => {
                let offer = incoming.offer();
                let (transfer, name) = (offer.transfer, offer.name.clone());
                let peer = Peer { transfer, name: name.clone(), peer: incoming.peer(), held, asks: None };
                tracing::info!(%transfer, %name, peer = %peer.peer, address = %incoming.address(), "accepted");
                let shown = Accepted {
                    transfer: transfer.to_string(),
                    name: name.as_str(),
                    peer: peer.peer.to_string(),
                    bytes: offer.layout.bytes(),
                };
                self.report.event("started", &shown);
                self.names.insert(transfer, name);
                self.take(guest, incoming, peer);
            }
            Err(error) => {
                let (offer, error) = (incoming.offer(), error.to_string());
                self.tally.refused += 1;
                self.report.warn(&format!("refused {} from {}: {error}", offer.name, incoming.address()));
                let (transfer, peer) = (offer.transfer.to_string(), incoming.peer().to_string());
                self.report.event("refused", &Refused { transfer, name: offer.name.as_str(), peer, error: &error });
                incoming.refuse(&error);
            }
        }
    }

    /// Images go below an open handle: another directory in the place of ours would never get one.
    fn still_there(&self) -> Result<(), GuestError> {
        if std::fs::metadata(&self.args.dir).is_ok_and(|now| (now.dev(), now.ino()) == self.dir_id) {
            return Ok(());
        }
        Err(GuestError::Other(format!(
            "{} was removed or exchanged while this receiver ran, and nothing can be stored there; it must be started again",
            self.args.dir.display()
        )))
    }

    /// Where an image is made, and bytes of it that are here from before.
    fn stage(&self, incoming: &IncomingOffer) -> Result<(Arc<dyn Guest>, u64), GuestError> {
        let offer = incoming.offer();
        if offer.kind != GuestKind::Image {
            return Err(GuestError::Other(
                "this receiver stores images; a running guest needs a node that can run it".into(),
            ));
        }
        if self.args.once && !self.is_idle() {
            return Err(GuestError::Other("this receiver takes one transfer (--once), and that is under way".into()));
        }
        self.still_there()?;
        let others = |(other, name): &(&TransferId, &Name)| **other != offer.transfer && **name == offer.name;
        if let Some((other, _)) = self.names.iter().find(others) {
            return Err(self.name_taken(*other, &offer.name));
        }
        let staging = self.folder.go_on(offer, incoming.peer(), |transfer| {
            transfer != offer.transfer && self.names.contains_key(&transfer)
        })?;
        let held = staging.held_bytes();
        if held > 0 {
            let name = offer.name.as_str();
            self.report.say(&format!("going on with {name}: {held} bytes of it are here already"));
            self.report.event("going-on", &GoingOn { transfer: offer.transfer.to_string(), name, bytes_held: held });
        }
        Ok((Arc::new(staging), held))
    }

    /// With a baseline that both ends have, if there is one.
    fn take(&mut self, guest: Arc<dyn Guest>, incoming: IncomingOffer, peer: Peer) {
        let (config, named) = (self.config(), !incoming.offer().baselines.is_empty());
        match &self.shelf {
            Some(shelf) if named => {
                let shelf = Arc::clone(shelf);
                self.taking.spawn_blocking(move || warm::take(&shelf, guest, incoming, peer, config));
                return;
            }
            Some(_) => {
                let why = format!("the sender of {} names no baseline", peer.name);
                warm::tell_none(&peer, &why, self.report);
            }
            None if named => {
                let why = format!(
                    "the sender of {} names a baseline, and this receiver has no store (--baseline-store)",
                    peer.name
                );
                warm::tell_none(&peer, &why, self.report);
            }
            None => {}
        }
        self.follow(incoming.accept(guest, config), peer);
    }

    fn taken(&mut self, taken: Option<Taken>) {
        // Without one its thread died, and its sender was told so by a closed connection.
        let (Some(taken), Some(shelf)) = (taken, &self.shelf) else { return };
        taken.tell(shelf, self.report);
        self.follow(taken.session, taken.peer);
    }

    /// A sender that gave up before a crash asks whether its image is here.
    fn asked(&mut self, incoming: IncomingAsk) {
        let record = incoming.record().clone();
        let (transfer, name) = (record.transfer, record.name.clone());
        let ran = record.standing == Standing::Ran;
        let asks = ran.then(|| record.layout.bytes());
        let peer = Peer { transfer, name, peer: incoming.peer(), held: 0, asks };
        if ran {
            // The image was handed over; where it is by now is its owner's business.
            if let Ok(layout) = Layout::new(&[1]) {
                let session = incoming.accept(Arc::new(Memory::new(layout)), self.config());
                self.follow(session, peer);
            }
            return;
        }
        match self.folder.reopen(&record) {
            Ok(staging) => {
                self.names.insert(record.transfer, record.name);
                let session = incoming.accept(Arc::new(staging), self.config());
                self.follow(session, peer);
            }
            // The record stays, and so does the doubt: an operator must look.
            Err(error) => {
                self.report.warn(&format!(
                    "error: transfer {} ({}) was promised, but {error}; see `dwcp resolve --dir {}`",
                    record.transfer,
                    record.name,
                    self.args.dir.display()
                ));
                incoming.refuse("what was promised cannot be found here; its operator must look");
            }
        }
    }

    fn config(&self) -> SinkConfig {
        SinkConfig { lanes: self.args.lanes.get(), ..SinkConfig::default() }
    }

    fn follow(&mut self, session: Session, peer: Peer) {
        let (supersede, superseded) = mpsc::channel(1);
        self.held.insert(peer.transfer, Held { peer: peer.peer, supersede });
        let (report, dir, keeper) = (self.report.clone(), self.args.dir.clone(), self.keeper.clone());
        let watch = Watch { report, peer, dir, keeper };
        let stopped = self.stopped.clone();
        self.running.spawn(watch.until_over(session, stopped, superseded));
    }

    fn done(&mut self, done: Option<&Done>) {
        // Without one its task died, which is a failure like any other.
        let exit = done.map_or(Exit::Failed, |done| done.exit);
        // A doubt keeps its name until it is resolved.
        if let Some(done) = done.filter(|_| exit != Exit::InDoubt) {
            self.names.remove(&done.transfer);
        }
        let next = done.and_then(|done| {
            self.held.remove(&done.transfer);
            self.waiting.remove(&done.transfer)
        });
        if let (Some(shelf), Some(spoiled)) = (&self.shelf, done.and_then(|done| done.spoiled)) {
            shelf.spoil(spoiled);
        }
        let parked = done.is_some_and(|done| done.parked);
        if !done.is_some_and(|done| done.superseded) {
            self.tally.count(exit, parked);
        }
        self.tidy();
        if let Some(incoming) = next.filter(|_| !self.tally.interrupted) {
            self.offered(incoming);
        }
    }

    /// Old records and what was cut off more than a day ago: a receiver may run for months.
    fn tidy(&self) {
        prune(&self.records);
        let kept = |transfer| self.names.contains_key(&transfer) || !matches!(self.records.load(transfer), Ok(None));
        match self.folder.sweep(now(), kept) {
            Ok(swept) => {
                for file in swept.removed {
                    tracing::info!(file, "removed what was cut off more than a day ago");
                }
            }
            Err(error) => tracing::warn!(%error, "what was cut off long ago cannot be removed"),
        }
    }

    async fn stop_legacy(&mut self) {
        if let Some(port) = &mut self.legacy {
            let (refused, cut) = port.stop().await;
            self.tally.refused += refused;
            if let Some(exit) = cut {
                self.tally.count(exit, false);
            }
        }
    }

    /// What waits for its sender's word, or an operator's, when nobody is here to hear it. True: there is some.
    fn tell_doubts(&self) -> bool {
        let listing = state::look(&self.records, Standing::Ready).unwrap_or_else(|failure| {
            self.report.trouble(&failure);
            Listing::default()
        });
        for record in &listing.records {
            self.report.warn(&format!(
                "warning: transfer {} ({}) stays in doubt here: it waits for its sender {}, or for `dwcp resolve --dir {}`",
                record.transfer,
                record.name,
                record.peer,
                self.args.dir.display()
            ));
            self.report.event("in-doubt", &Shown::from(record));
        }
        !listing.records.is_empty()
    }

    fn close(self) -> Exit {
        let Tally { received, failed, parked, refused, exit, .. } = self.tally;
        let stays = self.tell_doubts().then_some(Exit::InDoubt);
        let exit = match stays.or(exit) {
            // One that fails among many is no failure of the receiver.
            Some(exit) if self.args.once || exit == Exit::InDoubt => exit,
            _ if !self.running.is_empty() => Exit::Interrupted,
            // Whoever waits for the one transfer must not take this for it.
            _ if self.args.once && received == 0 => Exit::Interrupted,
            _ => Exit::Ok,
        };
        self.report.event("summary", &Summary { verdict: exit.word(), received, failed, parked, refused });
        exit
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    received: u64,
    failed: u64,
    parked: u64,
    refused: u64,
}

/// Until then, or for ever.
async fn passed(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// Which transfer, and whose.
#[derive(Clone, Debug)]
struct Peer {
    transfer: TransferId,
    name: Name,
    peer: Fingerprint,
    /// Bytes that were here before its session began.
    held: u64,
    /// Bytes of the guest, when the sender only asks what became of it: the image was handed over before, and may be anywhere by now.
    asks: Option<u64>,
}

#[derive(Serialize)]
struct Accepted<'a> {
    transfer: String,
    name: &'a str,
    peer: String,
    bytes: u64,
}

/// Follows one transfer to its end.
struct Watch {
    report: Report,
    peer: Peer,
    dir: PathBuf,
    keeper: Option<Keeper>,
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

    async fn until_over(
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
        let done = self.tell(&transfer, &outcome, received);
        if let Some(keeper) = self.keeper.filter(|_| outcome.owner == Owner::Sink && self.peer.asks.is_none()) {
            keeper.keep(&transfer, self.dir.join(self.peer.name.as_str()), root, &self.report).await;
        }
        done
    }

    fn tell(&self, transfer: &str, outcome: &Outcome, received: Received) -> Done {
        let Peer { transfer: id, name, .. } = &self.peer;
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
            Exit::Ok if self.peer.asks.is_some() && error.is_none() => self.report.say(&format!(
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
                "Nothing of it became visible here; it is the sender's as before.".into(),
            ),
        }
        self.report
            .event("transfer", &Ended { verdict: exit.word(), transfer, name: name.as_str(), asked, received, error });
        Done { transfer: *id, exit, parked, superseded, spoiled: spoiled(outcome) }
    }
}

/// The baseline that failed a transfer.
fn spoiled(outcome: &Outcome) -> Option<Digest> {
    match &outcome.error {
        Some(SessionError::Guest(GuestError::Baseline { digest, .. })) => Some(*digest),
        _ => None,
    }
}
