mod follow;
mod keeping;
mod names;
mod places;
mod staging;
mod supersede;
mod turns;
mod warm;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dwcp_core::guest::{ImageFolder, Memory};
use dwcp_core::net::{
    Endpoint, Fingerprint, Incoming, IncomingAsk, IncomingOffer, Listener, Listing, Records, Session,
};
use dwcp_core::session::{SinkConfig, Standing};
use dwcp_core::wire::{GuestKind, Name, TransferId};
use dwcp_core::{GuestError, Layout};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use self::follow::{Done, Parked, Watch};
use self::keeping::Keeping;
use self::places::{Held, Places, Stay};
use self::staging::{Stager, Taken};
use self::supersede::{Asked, Way};
use crate::baseline::{Keeper, Shelf};
use crate::cli::ReceiveArgs;
use crate::dual::dual;
use crate::exit::{Exit, Failure};
use crate::identity;
use crate::interrupt::Interrupts;
use crate::legacy::Port;
use crate::report::Report;
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
    let stager = Arc::new(Stager::new(&args, dir_id, (&folder, &records), shelf.as_ref(), report));
    let mut desk = Desk {
        args,
        report,
        places: Places::new(names),
        records,
        shelf,
        keeping: Keeping::new(keeper, report),
        stager,
        taking: JoinSet::new(),
        asking: JoinSet::new(),
        sweeping: JoinSet::new(),
        unswept: false,
        running: JoinSet::new(),
        followed: HashMap::new(),
        legacy,
        stopped,
        tally: Tally::default(),
    };
    desk.serve(&mut listener, &mut interrupts, &stop).await;
    desk.keeping.give_up();
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
    places: Places<IncomingOffer>,
    records: Records,
    /// Baselines that senders may name.
    shelf: Option<Arc<Shelf>>,
    /// Makes baselines of what arrived.
    keeping: Keeping,
    stager: Arc<Stager>,
    /// Offers that are being taken, and questions.
    taking: JoinSet<(Stay, Taken)>,
    /// Sessions that are asked to make place.
    asking: JoinSet<Asked>,
    /// What removes old files, one at most.
    sweeping: JoinSet<bool>,
    /// There may be some that are old.
    unswept: bool,
    running: JoinSet<Done>,
    /// Of which transfer, and stay, each of those is.
    followed: HashMap<task::Id, (TransferId, Stay)>,
    /// What comes over version 1, if that is taken.
    legacy: Option<Port>,
    stopped: watch::Receiver<Stop>,
    tally: Tally,
}

fn sink_config(args: &ReceiveArgs) -> SinkConfig {
    SinkConfig { lanes: args.lanes.get(), ..SinkConfig::default() }
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

/// Why another one is refused.
const ONE: &str = "this receiver takes one transfer (--once), and that is under way";

/// The end of what comes over version 1.
async fn over_legacy(legacy: &mut Option<Port>, elsewhere: Option<&str>) -> Exit {
    match legacy {
        Some(port) => port.next(elsewhere).await,
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
    /// Until somebody interrupts it, or one transfer is done with `--once`. Nothing here waits for a disk or for a session:
    /// one peer's transfer must not hold up another's.
    async fn serve(&mut self, listener: &mut Listener, interrupts: &mut Interrupts, stop: &watch::Sender<Stop>) {
        let (mut open, mut enough) = (true, false);
        let mut limit = None;
        while !(self.is_idle() && self.sweeping.is_empty() && (enough || !open)) {
            // With --once, whichever version came first.
            let engaged = (self.args.once && (enough || !self.is_idle())).then_some(ONE);
            tokio::select! {
                incoming = listener.accept(), if open => match incoming {
                    Some(Incoming::Offer(offer)) => self.came(offer),
                    Some(Incoming::Ask(ask)) => self.asked(ask),
                    Some(_) => {}
                    None => open = false,
                },
                Some(taken) = self.taking.join_next() => self.taken(taken.ok()),
                Some(asked) = self.asking.join_next() => self.answered(asked.ok()),
                Some(done) = self.running.join_next_with_id() => {
                    let goes_on = done.as_ref().is_ok_and(|(_, done)| done.superseded);
                    match done {
                        Ok((id, done)) => self.done(id, Some(done)),
                        Err(error) => self.done(error.id(), None),
                    }
                    enough |= self.args.once && !goes_on;
                }
                Some(()) = self.keeping.next() => {}
                Some(swept) = self.sweeping.join_next() => self.tidy(swept.unwrap_or(false)),
                exit = over_legacy(&mut self.legacy, engaged) => {
                    self.tally.count(exit, false);
                    enough |= self.args.once;
                }
                () = interrupts.next() => {
                    if self.tally.interrupted || self.is_idle() && self.sweeping.is_empty() {
                        return;
                    }
                    self.tally.interrupted = true;
                    open = false;
                    listener.close();
                    if !self.is_idle() {
                        self.report.warn("finishing what has come whole, parking the rest; once more to leave at once");
                    }
                    limit = Some(Instant::now() + self.args.grace);
                    let _ = stop.send(Stop::Retire);
                    self.legacy.iter_mut().for_each(Port::retire);
                }
                () = passed(limit) => {
                    limit = None;
                    let _ = stop.send(Stop::Cut);
                    self.legacy.iter_mut().for_each(Port::cut);
                    // A disk that does not answer is nothing to wait for; what it has is parked as it is.
                    self.taking.abort_all();
                    self.taking.detach_all();
                    self.sweeping.detach_all();
                    self.keeping.give_up();
                }
                else => return,
            }
        }
    }

    fn is_idle(&self) -> bool {
        let legacy = self.legacy.as_ref().is_none_or(Port::is_idle);
        legacy && self.running.is_empty() && self.taking.is_empty() && self.keeping.is_empty()
    }

    /// A sender that was killed comes back under the name that its lost session still holds: that one is asked whether it
    /// ends first, and gives the offer back through [`Done`].
    fn came(&mut self, incoming: IncomingOffer) {
        let (transfer, peer) = (incoming.offer().transfer, incoming.peer());
        if self.places.held(transfer).is_some() {
            // The session that its source lost is over, but we have not been told so yet.
            return self.places.wait(transfer, incoming);
        }
        let holder = self.places.holder(&incoming.offer().name, transfer);
        let Some((holder, held)) = holder.and_then(|holder| Some((holder, self.places.held(holder)?))) else {
            return self.offered(incoming);
        };
        // With --once there is no next one, and one that waits is enough.
        if held.peer != peer || self.args.once || self.places.is_waited_for(holder) {
            return self.offered(incoming);
        }
        match &held.session {
            Some(session) => drop(self.asking.spawn(session.clone().ask((holder, held.stay()), incoming))),
            // It is asked when there is one.
            None => self.places.wait(holder, incoming),
        }
    }

    /// Those who waited come again, to what is here now.
    fn came_again(&mut self, waiting: Vec<IncomingOffer>) {
        // Whoever comes while this receiver is stopped is heard by the next one.
        if !self.tally.interrupted {
            waiting.into_iter().for_each(|next| self.came(next));
        }
    }

    /// A session said whether it makes place for an offer.
    fn answered(&mut self, asked: Option<Asked>) {
        let Some(Asked { transfer, stay, incoming, ends }) = asked.filter(|_| !self.tally.interrupted) else { return };
        if !self.places.is_held_by(transfer, stay) {
            // Its end was heard of first, and somebody else may hold the name by now.
            return self.came(incoming);
        }
        if !ends || self.places.is_waited_for(transfer) {
            return self.offered(incoming);
        }
        tracing::info!(%transfer, peer = %incoming.peer(), "its lost session is over, because its sender came back");
        self.places.wait(transfer, incoming);
    }

    /// Takes an offer, if its name is free; that is its own from now on.
    fn offered(&mut self, incoming: IncomingOffer) {
        if let Err(error) = self.admits(&incoming) {
            return self.refuse(incoming, &error);
        }
        let (transfer, name, peer) = (incoming.offer().transfer, incoming.offer().name.clone(), incoming.peer());
        let others = self.places.named().filter(|&other| other != transfer).collect();
        let stay = self.places.begin(transfer, peer, Some(name));
        let taking = Arc::clone(&self.stager).take(incoming, others);
        self.taking.spawn(async move { (stay, taking.await) });
    }

    fn refuse(&mut self, incoming: IncomingOffer, error: &GuestError) {
        let (offer, error) = (incoming.offer(), error.to_string());
        self.tally.refused += 1;
        self.report.warn(&format!("refused {} from {}: {error}", offer.name, incoming.address()));
        let (transfer, peer) = (offer.transfer.to_string(), incoming.peer().to_string());
        self.report.event("refused", &Refused { transfer, name: offer.name.as_str(), peer, error: &error });
        incoming.refuse(&error);
    }

    fn admits(&self, incoming: &IncomingOffer) -> Result<(), GuestError> {
        let offer = incoming.offer();
        if offer.kind != GuestKind::Image {
            return Err(GuestError::Other(
                "this receiver stores images; a running guest needs a node that can run it".into(),
            ));
        }
        if self.args.once && !self.is_idle() {
            return Err(GuestError::Other(ONE.into()));
        }
        let holder = self.places.holder(&offer.name, offer.transfer);
        holder.map_or(Ok(()), |other| Err(self.name_taken(other, &offer.name)))
    }

    /// An offer or a question became a session, or did not.
    fn taken(&mut self, taken: Option<(Stay, Taken)>) {
        let Some((stay, taken)) = taken else { return };
        let waiting = match taken {
            Taken::Session { session, peer } => {
                let transfer = peer.transfer;
                self.follow(session, peer, stay);
                self.places.waiting(transfer)
            }
            Taken::Refused { incoming, error } => {
                let waiting = self.places.end(incoming.offer().transfer, stay, false);
                self.refuse(*incoming, &error);
                waiting
            }
            Taken::Died(transfer) => self.places.end(transfer, stay, false),
            // Its name stays promised.
            Taken::Lost(transfer) => self.places.end(transfer, stay, true),
        };
        self.came_again(waiting);
        self.tidy(false);
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
                let stay = self.places.begin(transfer, peer.peer, None);
                self.follow(session, peer, stay);
            }
            return;
        }
        // From now on, and whatever is found, for it was promised.
        let stay = self.places.begin(transfer, peer.peer, Some(record.name));
        let reopening = Arc::clone(&self.stager).reopen(incoming, peer);
        self.taking.spawn(async move { (stay, reopening.await) });
    }

    fn config(&self) -> SinkConfig {
        sink_config(&self.args)
    }

    fn follow(&mut self, session: Session, peer: Peer, stay: Stay) {
        let (way, asked) = Way::to_session();
        let transfer = peer.transfer;
        self.places.follow(transfer, stay, way, session.progress());
        let (report, folder) = (self.report.clone(), self.stager.folder().clone());
        let watch = Watch { report, peer, dir: self.args.dir.clone(), folder };
        let running = self.running.spawn(watch.until_over(session, self.stopped.clone(), asked));
        self.followed.insert(running.id(), (transfer, stay));
    }

    /// Without a [`Done`] its task died.
    fn done(&mut self, id: task::Id, done: Option<Done>) {
        let Some((transfer, stay)) = self.followed.remove(&id) else { return };
        // A doubt keeps its name until it is resolved.
        let doubted = done.as_ref().map_or_else(
            || self.places.held(transfer).is_some_and(Held::is_promised),
            |done| done.exit == Exit::InDoubt,
        );
        let waiting = self.places.end(transfer, stay, doubted);
        match done {
            Some(done) => self.ended(done),
            // A failure like any other.
            None => self.tally.count(Exit::Failed, false),
        }
        self.came_again(waiting);
        self.tidy(true);
    }

    fn ended(&mut self, done: Done) {
        if let (Some(shelf), Some(spoiled)) = (&self.shelf, done.spoiled) {
            shelf.spoil(spoiled);
        }
        if !done.superseded {
            self.tally.count(done.exit, done.parked);
        }
        if let Some(image) = done.image {
            self.keeping.begin(image);
        }
    }

    /// Old records and what was cut off more than a day ago: a receiver may run for months. `more`: there may be some that were
    /// not looked at.
    fn tidy(&mut self, more: bool) {
        self.unswept |= more;
        if !self.unswept || !self.sweeping.is_empty() {
            return;
        }
        // Offers go first; it is tried again when they are taken.
        let Some(right) = self.stager.sweeping() else { return };
        self.unswept = false;
        let others = self.places.named().collect();
        self.sweeping.spawn(Arc::clone(&self.stager).sweep(right, others));
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
