//! What comes in, once its handshake is over: offers, questions, and the places of sessions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::clock::Clock;
use super::conduct::{Accuser, FROM_A_SOURCE};
use super::control::ControlLink;
use super::dial::HANDSHAKE_LIMIT;
use super::driver::{Chores, Driver, EVENTS, Event, Flagged, Stream, supersede};
use super::endpoint::Endpoint;
use super::error::{EndpointError, RecordsError};
use super::greet::Gate;
use super::handshake::{read_frame, turn_away, write_frame};
use super::lane_sink::SinkLanes;
use super::offence::{Offence, TurnedAway};
use super::session::Session;
use super::sink_hands::SinkHands;
use super::statistics::{End, Ledger};
use crate::guest::{Guest, HeldPages, OldPages};
use crate::session::binding::{Chosen, Key, MESSAGES};
use crate::session::{Fingerprint, Input, Leaves, Machine, Record, Sink, SinkConfig, Standing, Time};
use crate::wire::{
    Abort, AbortReason, ErrorCode, FenceEpoch, Frame, GuestKind, Offer, PeerLimits, Run, SessionId, TransferId,
};

/// A session answers whether it can be superseded as soon as it has done what waits in its queue; one that failed, when what
/// was staged is thrown away or parked.
const SUPERSEDE_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take until the session that a new one supersedes is over.
const RETAKE_LIMIT: Duration = Duration::from_secs(10);
/// Offers that may wait for [`Listener::accept`] in its queue; more wait behind it.
const OFFERS: usize = 16;
/// Control connections of a session that nobody has accepted yet, besides the first: an honest source loses few in that time.
const CLAIMS_WAITING: u32 = 8;
/// Of one identity: sessions that are alive, waiting ones included.
const SESSIONS_PER_PEER: usize = 4096;
/// Of one identity: pages of their layouts, 64 TiB. What is only offered, or zeros, takes up to 1 MiB for each 4 TiB.
const PAGES_PER_PEER: u64 = 1 << 34;
/// Of all identities together: 256 TiB, of which at most 64 MiB are such.
const PAGES_PER_NODE: u64 = 1 << 36;

/// Takes connections and hands out what they offer.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    incoming: mpsc::Receiver<Incoming>,
    task: JoinHandle<()>,
}

/// What a peer wants.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// To move something here.
    Offer(IncomingOffer),
    /// To know whether something that was READY here before a crash runs.
    Ask(IncomingAsk),
}

/// An offer that waits for an answer.
#[derive(Debug)]
pub struct IncomingOffer {
    first: First,
    seat: Seat,
    offer: Offer,
}

/// A question that waits for the guest it is about.
#[derive(Debug)]
pub struct IncomingAsk {
    first: First,
    seat: Seat,
    record: Record,
}

/// A control connection whose first frame has been read.
#[derive(Debug)]
pub(super) struct First {
    pub(super) gate: Gate,
    pub(super) stream: Stream,
    pub(super) address: SocketAddr,
    pub(super) peer: Fingerprint,
    pub(super) session: SessionId,
    pub(super) key: Key,
    pub(super) limits: PeerLimits,
    pub(super) chosen: Chosen,
}

/// The one session of a transfer, from its first frame on: what comes for it before somebody accepts
/// it waits in `queue`.
#[derive(Debug)]
struct Seat {
    place: Place,
    events: mpsc::Sender<Event>,
    queue: mpsc::Receiver<Event>,
}

/// Why a session has no place.
enum NoSeat {
    /// Its transfer has a session already, of this peer: the way to that, and what ends when its place is free.
    Own(mpsc::Sender<Event>, watch::Receiver<()>),
    /// Its transfer has a session already, of another peer.
    Anothers,
    /// This peer has as many as it may.
    TooMany,
}

/// Among the sessions that are alive; left when this is dropped.
#[derive(Debug)]
struct Place {
    sessions: Sessions,
    session: SessionId,
    /// Who waits for it sees this go.
    _held: watch::Sender<()>,
}

impl Place {
    /// Somebody has accepted it.
    fn taken(&self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sessions.get_mut(&self.session) {
            known.waiting = false;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.session);
    }
}

pub(super) type Sessions = Arc<Mutex<HashMap<SessionId, Known>>>;

/// A session that is alive here.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) peer: Fingerprint,
    transfer: TransferId,
    pub(super) key: Key,
    pub(super) limits: PeerLimits,
    /// The last attempt seen; an attempt is good once. spec: H-6
    pub(super) attempt: u32,
    pub(super) events: mpsc::Sender<Event>,
    /// Nobody has accepted it yet.
    waiting: bool,
    /// Pages of its layout. A question needs none: its guest was counted when it was offered, and has come.
    pages: u64,
    /// Control connections that its source has made anew meanwhile; each waits in the queue.
    claims: u32,
    held: watch::Receiver<()>,
}

impl Known {
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether a control connection that was made anew may wait, too. spec: H-11
    pub(super) fn may_come_back(&mut self) -> bool {
        if self.waiting {
            self.claims += 1;
        }
        self.claims <= CLAIMS_WAITING || !self.waiting
    }
}

impl Listener {
    pub(super) async fn open(endpoint: Endpoint, at: &str) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Listen { address: at.to_owned(), source };
        let socket = TcpListener::bind(at).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let (offers, incoming) = mpsc::channel(OFFERS);
        let gate = Gate::new(endpoint, offers);
        Ok(Self { address, incoming, task: tokio::spawn(gate.listen(socket)) })
    }

    /// Where it listens; tells the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next thing that a peer wants; `None` once it was closed.
    ///
    /// Cancel safe: dropped, it has taken nothing; what waits is there for the next call.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Takes no more connections. Sessions that were accepted go on, but cannot re-make theirs.
    pub fn close(&mut self) {
        self.task.abort();
        self.incoming.close();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl IncomingOffer {
    /// What is offered. All of it is the peer's word: data, never policy.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Who offers, by the key that it has proved to have.
    pub fn peer(&self) -> Fingerprint {
        self.first.peer
    }

    /// From where.
    pub fn address(&self) -> SocketAddr {
        self.first.address
    }

    /// Takes it: the pages go into `guest`, which starts out as zeros and has the offered layout.
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        self.take(guest, None, config)
    }

    /// As [`accept`](Self::accept), into a guest that has the pages of a baseline where it does not hold others, such as a
    /// [`Laying`](crate::baseline::Laying). spec: O-9
    pub fn accept_with_baseline(self, guest: Arc<dyn Guest>, baseline: HeldPages, config: SinkConfig) -> Session {
        self.take(guest, Some(baseline), config)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a configuration is handed over, as to a source")]
    fn take(self, guest: Arc<dyn Guest>, baseline: Option<HeldPages>, config: SinkConfig) -> Session {
        let leaves = Arc::new(Leaves::new(&self.offer.layout));
        let holds = |region, page, leaf| {
            if let Some(page) = self.offer.layout.flat(region, page) {
                leaves.set(page, leaf);
            }
        };
        guest.held(&mut |region, page, leaf| holds(region, page, leaf));
        let Chosen { framing, features } = self.first.chosen;
        let lanes = config.lanes.min(self.first.limits.lanes);
        let (dictionaries, _) = self.first.gate.endpoint.dictionaries.of(&self.offer.dictionaries);
        let config = SinkConfig { lanes, framing, messages: features & MESSAGES != 0, dictionaries, ..config };
        let machine = Sink::new(config, self.offer.clone(), Arc::clone(&leaves), self.first.peer);
        let (machine, baseline) = match baseline {
            Some(HeldPages { number, leaves, pages }) => (machine.with_baseline(number, leaves), Some(pages)),
            None => (machine, None),
        };
        self.first.drive(self.seat, &self.offer, machine, Target { guest, leaves, baseline })
    }

    /// Turns it away with a sentence for the operator at the other end.
    pub fn refuse(self, text: &str) {
        let text = text.to_owned();
        tokio::spawn(async move { self.first.refuse(&text).await });
    }
}

impl IncomingAsk {
    /// What this node had promised.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Who asks.
    pub fn peer(&self) -> Fingerprint {
        self.first.peer
    }

    /// Turns the question away with a sentence for the operator at the other end. The doubt stays.
    pub fn refuse(self, text: &str) {
        let (mut stream, text) = (self.first.stream, text.to_owned());
        tokio::spawn(async move { turn_away(&mut stream, ErrorCode::Local, &text).await });
    }

    /// Answers, with the guest that was staged then. For a record that says RAN any guest will do:
    /// it is not touched.
    pub fn accept(self, guest: Arc<dyn Guest>, config: SinkConfig) -> Session {
        let (transfer, epoch, name) = (self.record.transfer, self.record.epoch, self.record.name.clone());
        let layout = guest.layout().clone();
        let leaves = Arc::new(Leaves::new(&layout));
        let (kind, dictionaries, baselines) = (GuestKind::Image, Vec::new(), Vec::new());
        let offer = Offer { transfer, epoch, kind, name, dictionaries, baselines, layout };
        let machine = Sink::recover(config, offer.clone(), &self.record);
        self.first.drive(self.seat, &offer, machine, Target { guest, leaves, baseline: None })
    }
}

/// What the records have against an offer.
enum Against {
    /// A sentence for its source.
    Word(String),
    /// They cannot be read, or not be written.
    Disk(RecordsError),
}

/// How far a peer may raise the fence at a time: one that claims the last of all epochs must not shut itself out.
const FARTHEST_FENCE: u64 = 1 << 20;

/// Where pages go, and what is known of it.
struct Target {
    guest: Arc<dyn Guest>,
    leaves: Arc<Leaves>,
    baseline: Option<Arc<dyn OldPages>>,
}

/// What sessions have of a node.
#[derive(Debug, Default)]
struct Taken {
    /// Of one identity.
    alive: usize,
    waiting: usize,
    pages: u64,
    /// Of all.
    pages_in_all: u64,
}

impl Taken {
    fn by(sessions: &HashMap<SessionId, Known>, peer: Fingerprint) -> Self {
        let mut taken = Self::default();
        for known in sessions.values() {
            taken.pages_in_all += known.pages;
            if known.peer == peer {
                taken.alive += 1;
                taken.waiting += usize::from(known.waiting);
                taken.pages += known.pages;
            }
        }
        taken
    }

    /// Whether one more session of that identity, with so many pages, fits. spec: H-11
    fn has_room(&self, pages: u64) -> bool {
        let fits = |taken: u64, most| taken.saturating_add(pages) <= most;
        self.alive < SESSIONS_PER_PEER && fits(self.pages, PAGES_PER_PEER) && fits(self.pages_in_all, PAGES_PER_NODE)
    }
}

impl First {
    /// The place of this session. spec: O-5, H-11
    fn seat(&self, transfer: TransferId, pages: u64) -> Result<Seat, NoSeat> {
        let (events, queue) = mpsc::channel(EVENTS);
        let (peer, key, limits) = (self.peer, self.key.clone(), self.limits);
        let (leaves, held) = watch::channel(());
        let (events_of, waiting) = (events.clone(), true);
        let known =
            Known { peer, transfer, key, limits, attempt: 0, events: events_of, waiting, pages, claims: 0, held };
        let mut sessions = self.gate.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = sessions.values().find(|known| known.transfer == transfer) {
            let own = || NoSeat::Own(other.events.clone(), other.held.clone());
            return Err(if other.peer == self.peer { own() } else { NoSeat::Anothers });
        }
        let taken = Taken::by(&sessions, self.peer);
        if taken.waiting >= self.gate.waiting_per_peer || !taken.has_room(pages) {
            return Err(NoSeat::TooMany);
        }
        sessions.insert(self.session, known);
        let place = Place { sessions: Arc::clone(&self.gate.sessions), session: self.session, _held: leaves };
        Ok(Seat { place, events, queue })
    }

    fn drive(self, seat: Seat, offer: &Offer, machine: Sink, target: Target) -> Session {
        let Target { guest, leaves, baseline } = target;
        let Seat { place, events, queue } = seat;
        place.taken();
        let accuser = Accuser { conduct: Arc::clone(&self.gate.endpoint.conduct), peer: self.peer };
        let shared = Arc::new(SinkLanes {
            guest: Arc::clone(&guest),
            leaves,
            codec: self.gate.endpoint.codec.clone(),
            threads: self.gate.endpoint.threads.clone(),
            dictionaries: self.gate.endpoint.dictionaries.of(&offer.dictionaries).1,
            baseline,
        });
        let hands = SinkHands {
            transfer: offer.transfer,
            accuser: accuser.clone(),
            joined: BTreeSet::new(),
            shared,
            threads: self.gate.endpoint.threads.clone(),
            events: events.clone(),
            workers: JoinSet::new(),
            lanes: BTreeMap::new(),
            terms: (offer.epoch, self.chosen.framing),
            kept: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        let (progress, watch) = watch::channel(machine.progress().clone());
        let counters = Arc::clone(&self.gate.endpoint.counters);
        let ledger = Ledger::open(counters, End::Sink, self.chosen.framing);
        let driver = Driver {
            machine,
            hands,
            control: Some(ControlLink::start(self.stream, 0, FROM_A_SOURCE, events.clone())),
            generation: 0,
            accuser,
            chores: Chores::start(guest, self.gate.endpoint.records, events.clone()),
            events: events.clone(),
            queue,
            clock: Clock::start(),
            progress,
            published: Time::default(),
            flags: Flagged::by(&self.gate.endpoint.flags),
            ledger,
        };
        let task = tokio::spawn(driver.run(Vec::new(), place));
        Session::new(offer.transfer, events, watch, task)
    }
}

impl First {
    /// A new session begins with an offer, or with the question of a source that gave up. spec: S-8
    pub(super) async fn begin(mut self, frame: Frame) {
        match frame {
            Frame::Offer(offer) => self.offered(offer).await,
            Frame::Run(run) => self.asked(run).await,
            other => {
                let text = format!("a session begins with OFFER or RUN, not with {:?}", other.frame_type());
                self.gate.endpoint.conduct.charge(self.peer, Offence::OutOfPlace);
                turn_away(&mut self.stream, ErrorCode::Unexpected, &text).await;
            }
        }
    }

    /// One session a transfer, and one transfer an id: what ran here is no longer offered. spec: O-5
    async fn offered(self, offer: Offer) {
        let pages = u64::from(offer.layout.flat_pages());
        let retaken = tokio::time::timeout(RETAKE_LIMIT, self.retake(offer.transfer, pages)).await;
        let seat = match retaken.unwrap_or(Err(NoSeat::Anothers)) {
            Ok(seat) => seat,
            Err(NoSeat::TooMany) => return self.too_many().await,
            Err(NoSeat::Own(..) | NoSeat::Anothers) => {
                let text = "this transfer is under way here in another session, or that is not wound up yet; wait until it has \
                            ended, and send it again";
                return self.refuse(text).await;
            }
        };
        let looked = self.look(seat, move |first| first.due(&offer).map(|()| offer)).await;
        let Some((mut first, seat, due)) = looked else { return };
        match due {
            Ok(offer) => {
                let offers = first.gate.offers.clone();
                let _ = offers.send(Incoming::Offer(IncomingOffer { first, seat, offer })).await;
            }
            Err(Against::Word(text)) => first.refuse(&text).await,
            Err(Against::Disk(error)) => turn_away(&mut first.stream, ErrorCode::Local, &error.to_string()).await,
        }
    }

    /// Looks into the records for a session, where a disk that does not answer keeps no connection of another waiting. The place
    /// is taken until it has answered, also when nobody waits for that any more: what is written meanwhile is written for this
    /// session and no other.
    async fn look<T: Send + 'static>(
        self,
        seat: Seat,
        look: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<(Self, Seat, T)> {
        let turn = Arc::clone(&self.gate.looks).acquire_owned().await.ok()?;
        let looking = tokio::task::spawn_blocking(move || {
            let found = look(&self);
            drop(turn);
            (self, seat, found)
        });
        // Who finds a bug is hung up on.
        looking.await.ok()
    }

    /// What the records have against an offer. What was promised of it is taken back. May block.
    fn due(&self, offer: &Offer) -> Result<(), Against> {
        failpoint!("sink.seated");
        self.fenced(offer.epoch)?;
        let records = &self.gate.endpoint.records;
        match records.load(offer.transfer) {
            Ok(None) => Ok(()),
            Ok(Some(record)) if self.retracts(&record, offer) => {
                failpoint!("sink.retracts");
                let forgotten = records.forget(offer.transfer);
                failpoint!("sink.retracted");
                forgotten.map_err(Against::Disk)
            }
            Ok(Some(_)) => Err(Against::Word(
                "this transfer was here before: ask what became of it (`dwcp resolve`), or begin a new one".into(),
            )),
            Err(error) => Err(Against::Disk(error)),
        }
    }

    /// Whether an offer is of this pair's epoch. A later one is remembered before anything of it is taken; one that nobody hears of
    /// any more does no harm, for it is its source's own. May block. spec: O-7
    fn fenced(&self, epoch: FenceEpoch) -> Result<(), Against> {
        let records = &self.gate.endpoint.records;
        let fence = records.fence(self.peer).map_err(Against::Disk)?;
        if epoch < fence || epoch.0 - fence.0 > FARTHEST_FENCE {
            let text = format!("an offer of {epoch} where {fence} is due; the sender's state is older than its peer's");
            return Err(Against::Word(text));
        }
        records.raise_fence(self.peer, epoch).map(drop).map_err(Against::Disk)
    }

    /// A source never offers what it gave up: its offer takes back what was promised to it. spec: O-6
    fn retracts(&self, record: &Record, offer: &Offer) -> bool {
        let same = record.peer == self.peer && record.name == offer.name && record.layout == offer.layout;
        same && record.standing == Standing::Ready
    }

    /// The place of this session, once the one that its source has lost is over. spec: O-5, O-6
    async fn retake(&self, transfer: TransferId, pages: u64) -> Result<Seat, NoSeat> {
        let (lost, mut held) = match self.seat(transfer, pages) {
            Err(NoSeat::Own(lost, held)) => (lost, held),
            seat => return seat,
        };
        // One that nobody has accepted yet leaves the question unanswered.
        let answered = tokio::time::timeout(SUPERSEDE_LIMIT, supersede(&lost, true)).await;
        if !answered.map_err(|_| NoSeat::Anothers)? {
            return Err(NoSeat::Own(lost, held));
        }
        // Its chores may take a while: what it holds is parked, or thrown away.
        while held.changed().await.is_ok() {}
        self.seat(transfer, pages)
    }

    /// It is no offence to have many guests to move. spec: H-11
    async fn too_many(self) {
        self.gate.endpoint.conduct.turned_away(TurnedAway::OverPeerLimit);
        self.refuse("as much of this peer as it may have is here or waits here; try again later").await;
    }

    /// Turns an offer away with a sentence for the operator at the other end.
    async fn refuse(mut self, text: &str) {
        let abort = Frame::Abort(Abort { reason: AbortReason::Refused, text: text.into() });
        let _ = write_frame(&mut self.stream, &abort).await;
        // Wait for the peer to hang up first, lest a reset swallow the sentence.
        let _ = tokio::time::timeout(HANDSHAKE_LIMIT, read_frame(&mut self.stream, 64, &mut Vec::new())).await;
    }

    /// Another peer than the record's is told what it would be told of a transfer that never was.
    /// spec: P-3
    async fn asked(mut self, run: Run) {
        let unknown = "this transfer is not known here";
        let (transfer, run) = (run.transfer, Frame::Run(run));
        let seat = match self.seat(transfer, 0) {
            Ok(seat) => seat,
            Err(NoSeat::Own(events, _)) => {
                let made = Event::ControlMade { stream: Box::new(self.stream), first: Some(run) };
                let _ = events.send(made).await;
                return;
            }
            Err(NoSeat::Anothers) => return turn_away(&mut self.stream, ErrorCode::Unknown, unknown).await,
            Err(NoSeat::TooMany) => return self.too_many().await,
        };
        // The session hears it as soon as somebody accepts, and before what its source repeats on other connections; the queue was
        // made a moment ago and has room.
        let _ = seat.events.try_send(Event::Input(Input::Frame(run)));
        let looked = self.look(seat, move |first| first.gate.endpoint.records.load(transfer)).await;
        let Some((mut first, seat, found)) = looked else { return };
        match found {
            Ok(Some(record)) if record.peer == first.peer && record.standing != Standing::GaveUp => {
                let offers = first.gate.offers.clone();
                let _ = offers.send(Incoming::Ask(IncomingAsk { first, seat, record })).await;
            }
            Ok(_) => turn_away(&mut first.stream, ErrorCode::Unknown, unknown).await,
            Err(error) => turn_away(&mut first.stream, ErrorCode::Local, &error.to_string()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: H-11
    #[test]
    fn the_largest_layouts_fit_beside_others_and_not_without_an_end() {
        let largest = crate::extent::MAX_PAGES;
        assert!(Taken::default().has_room(largest));
        let of_peer = |alive, pages| Taken { alive, pages, pages_in_all: pages, ..Taken::default() };
        assert!(of_peer(15, 15 * largest).has_room(largest) && !of_peer(15, 15 * largest + 1).has_room(largest));
        assert!(of_peer(16, 16 * largest).has_room(0), "a question is answered all the same");
        assert!(of_peer(4095, 0).has_room(1) && !of_peer(4096, 0).has_room(0));
        let of_others = |pages_in_all| Taken { pages_in_all, ..Taken::default() };
        assert!(of_others(63 * largest).has_room(largest) && !of_others(63 * largest + 1).has_room(largest));
    }
}
