use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwcp_hde::Dictionary;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::accept::Listener;
use super::clock::Clock;
use super::conduct::{Accuser, Conduct, FROM_A_SINK};
use super::control::ControlLink;
use super::dial::{ControlStream, Dialer, Sockets, random};
use super::dictionaries::Held;
use super::driver::{Chores, Driver, EVENTS, Flagged};
use super::error::{EndpointError, RecordsError};
use super::identity::{Identity, Trust};
use super::lane_source::{ShadowBytes, SourceLanes, SourcePages, Unread};
use super::offence::Offences;
use super::openings::Openings;
use super::quarantine::{Quarantine, Quarantined};
use super::records::{FIRST_EPOCH, Records};
use super::session::Session;
use super::socket::Socket;
use super::source_hands::SourceHands;
use super::statistics::{Counters, Declined, End, Ledger, MethodCounters, Statistics, VersionRefusal};
use super::threads::Threads;
use super::tls::Tls;
use crate::extent::Layout;
use crate::flag::{Constant, FlagSource};
use crate::guest::{Guest, OldPages};
use crate::message::MessageCodec;
use crate::session::binding::{Chosen, MESSAGES, Speaks};
use crate::session::handover::Wish;
use crate::session::{Fingerprint, Leaves, Machine, Record, SinkConfig, Source, SourceConfig, Time};
use crate::wire::limits::{MAX_LANES, MAX_OFFERED_BASELINES};
use crate::wire::{FenceEpoch, Framing, GuestKind, Name, Offer, TransferId};

/// A node: its identity, whom it trusts, its threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) tls: Tls,
    pub(super) threads: Threads,
    pub(super) records: Records,
    pub(super) sockets: Sockets,
    pub(super) conduct: Arc<Conduct>,
    /// Bulk lanes that a peer may open here in one session.
    pub(super) lanes: u16,
    /// Carries messages, if this node can.
    pub(super) codec: Option<Arc<dyn MessageCodec>>,
    /// Has pages that sinks may hold.
    baselines: Arc<[Arc<dyn OldPages>]>,
    /// To which blocks may refer, if the peer has them, too.
    pub(super) dictionaries: Held,
    /// What this node wants lanes to carry.
    pub(super) flags: Arc<dyn FlagSource>,
    /// Who is asked about connections before TLS begins.
    pub(super) openings: Option<Arc<dyn Openings>>,
    pub(super) counters: Arc<Counters>,
}

/// What is spoken with a peer that comes now, by one look at the flags.
#[derive(Clone, Debug)]
pub(super) struct Spoken {
    pub(super) speaks: Speaks,
    /// Why not version 3.
    declined: Option<Declined>,
}

impl Spoken {
    /// Who declined version 3, where a handshake agreed on something else.
    pub(super) fn declined(&self, chosen: Framing) -> Option<Declined> {
        (chosen == Framing::Messages).then(|| self.declined.unwrap_or(Declined::Peer))
    }
}

/// What a source wants to move, and under which name.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Names it for its whole life.
    pub id: TransferId,
    /// What the sink shall call it.
    pub name: Name,
    /// What it is.
    pub kind: GuestKind,
}

impl Transfer {
    /// A transfer with a random id.
    pub fn new(name: Name, kind: GuestKind) -> Self {
        Self { id: TransferId(random()), name, kind }
    }
}

impl Endpoint {
    /// A node with this identity that talks to whom it trusts, and keeps no records.
    ///
    /// # Errors
    /// Identity or trust cannot be used; threads cannot be started.
    pub fn new(identity: &Identity, trust: &Trust) -> Result<Self, EndpointError> {
        Ok(Self {
            tls: Tls::new(identity, trust)?,
            threads: Threads::start()?,
            records: Records::none(),
            sockets: Sockets::default(),
            conduct: Arc::new(Conduct::new(Quarantine::default())),
            lanes: SinkConfig::default().lanes,
            codec: None,
            baselines: [].into(),
            dictionaries: Held::default(),
            flags: Arc::new(Constant::v3()),
            openings: None,
            counters: Arc::default(),
        })
    }

    /// Keeps records of what was promised (GIVE_UP, READY, RAN) in this folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn with_records(mut self, folder: impl Into<PathBuf>) -> Result<Self, EndpointError> {
        self.records = Records::open(folder)?;
        Ok(self)
    }

    /// Pins `TCP_CONGESTION` of every connection, instead of the system's default.
    #[must_use]
    pub fn with_congestion(mut self, name: impl Into<String>) -> Self {
        self.sockets.congestion = Some(name.into());
        self
    }

    /// Lets a source open so many bulk lanes here in one session, 1 to 64; 16 by default. It is told so in the
    /// handshake, and opens no more.
    #[must_use]
    pub fn with_lanes(mut self, lanes: u16) -> Self {
        self.lanes = lanes.clamp(1, MAX_LANES);
        self
    }

    /// Lets sources offer these baselines, best first: what the sink holds of one as well does not travel, and of what
    /// changed since only the change. The first four are offered. spec: O-9
    #[must_use]
    pub fn with_baselines(mut self, baselines: impl IntoIterator<Item = Arc<dyn OldPages>>) -> Self {
        self.baselines = baselines.into_iter().take(MAX_OFFERED_BASELINES).collect();
        self
    }

    /// Uses these dictionaries with peers that hold them, too, best first: extents of few pages become smaller. A source
    /// offers the first four. Who offers one, or takes one, lets the peer know that it holds it: give only what peers of
    /// this node may know of, such as the dictionaries of one tenant. spec: O-8
    #[must_use]
    pub fn with_dictionaries(mut self, dictionaries: impl IntoIterator<Item = Dictionary>) -> Self {
        self.dictionaries = Held::new(dictionaries);
        self
    }

    /// Lets lanes carry version 1's messages, too: with a peer that can, when either wants it, from the start or in
    /// mid-transfer.
    #[must_use]
    pub fn with_messages(mut self, codec: Arc<dyn MessageCodec>) -> Self {
        self.codec = Some(codec);
        self
    }

    /// Obeys these flags, now and whenever they change: where version 3 is off, lanes carry messages, and sessions
    /// under way hand over at once. By default version 3 is on for ever.
    #[must_use]
    pub fn with_flags(mut self, flags: Arc<dyn FlagSource>) -> Self {
        self.flags = flags;
        self
    }

    /// Asks these about every connection that a [`Listener`] accepts, before TLS begins. By default all of them are taken
    /// for TLS.
    #[must_use]
    pub fn with_openings(mut self, openings: Arc<dyn Openings>) -> Self {
        self.openings = Some(openings);
        self
    }

    /// What is spoken with a peer that comes now. `None`: nothing can be.
    pub(super) fn spoken(&self) -> Option<Spoken> {
        let flags = self.flags.snapshot();
        let speaks = Speaks::new(self.codec.is_some(), Wish::of(&flags).framing)?;
        Some(Spoken { speaks, declined: Declined::of(&flags) })
    }

    /// As [`spoken`](Self::spoken), to a sink. Who gave up only asks, whatever is wanted now.
    fn spoken_to_begin(&self, asks: bool) -> Result<Spoken, EndpointError> {
        let asked = asks.then(|| Spoken { speaks: self.capable(), declined: None });
        asked.or_else(|| self.spoken()).ok_or(EndpointError::NothingSpoken).inspect_err(|_| {
            self.counters.refused(VersionRefusal::NothingSpoken);
        })
    }

    /// All that can be spoken.
    pub(super) fn capable(&self) -> Speaks {
        let features = if self.codec.is_some() { MESSAGES } else { 0 };
        let versions = if self.codec.is_some() { 1..=3 } else { 3..=3 };
        Speaks { versions, features }
    }

    /// Keeps in this folder who is in quarantine, so that a restart frees nobody. Without it a restart does.
    /// What was counted before is forgotten: call it before anything else.
    ///
    /// # Errors
    /// The folder cannot be made or read. A file in it that cannot be read is only warned of.
    pub fn with_quarantine(mut self, folder: impl Into<PathBuf>) -> Result<Self, EndpointError> {
        self.conduct = Arc::new(Conduct::new(Quarantine::open(folder)?));
        Ok(self)
    }

    /// What peers did that they must not, and who was turned away, since this endpoint was made.
    pub fn offences(&self) -> Offences {
        self.conduct.offences()
    }

    /// All that is counted at this node, for an exporter. Costs a copy of some kilobytes; ask every second, or every
    /// fifteen. All clones of an endpoint count together.
    ///
    /// ```no_run
    /// use dwcp_core::net::{Ending, Endpoint};
    ///
    /// fn export(endpoint: &Endpoint) {
    ///     let statistics = endpoint.statistics();
    ///     println!("dwcp_v3_sessions{{end=\"sink\"}} {}", statistics.sink.v3.live);
    ///     for ending in Ending::ALL {
    ///         let count = statistics.sink.v3.ended.get(&ending).unwrap_or(&0);
    ///         println!("dwcp_v3_sessions_ended_total{{end=\"sink\",ending=\"{ending}\"}} {count}");
    ///     }
    /// }
    /// ```
    pub fn statistics(&self) -> Statistics {
        self.counters.statistics(self.flags.as_ref(), self.offences())
    }

    /// Peers of which nothing is taken now.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.conduct.quarantine.now()
    }

    /// The records of this node.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Connects to a sink at `to` (host and port) and begins to move `guest`. Returns once the
    /// handshake is done; the rest is the session's.
    ///
    /// Cancel safe: dropped before it returns, nothing was begun.
    ///
    /// # Errors
    /// The sink cannot be reached, is not trusted, or speaks no common version.
    pub async fn send(
        &self,
        to: &str,
        transfer: Transfer,
        guest: Arc<dyn Guest>,
        config: SourceConfig,
    ) -> Result<Session, EndpointError> {
        let Transfer { id, name, kind } = transfer;
        let (layout, dictionaries) = (guest.layout().clone(), self.dictionaries.ids());
        let baselines = self.baselines.iter().map(|baseline| baseline.digest()).collect();
        let offer = Offer { transfer: id, epoch: FIRST_EPOCH, kind, name, dictionaries, baselines, layout };
        self.begin(to, offer, guest, config, None).await
    }

    /// Asks a sink whether it runs a transfer for which this node gave up before it crashed. Ends in
    /// [`Owner::Sink`](crate::session::Owner::Sink) or stays in doubt.
    ///
    /// Cancel safe: dropped before it returns, nothing was asked, and the record is as it was.
    ///
    /// # Errors
    /// As [`Endpoint::send`]; whoever answers is not the peer that the record names.
    pub async fn ask(&self, to: &str, record: &Record, config: SourceConfig) -> Result<Session, EndpointError> {
        let layout = Layout::new(&[1])
            .map_err(|error| EndpointError::Unexpected { address: to.to_owned(), what: error.to_string() })?;
        let guest = Arc::new(crate::guest::Memory::new(layout.clone()));
        let (transfer, epoch, name) = (record.transfer, record.epoch, record.name.clone());
        let (kind, dictionaries, baselines) = (GuestKind::Image, Vec::new(), Vec::new());
        let offer = Offer { transfer, epoch, kind, name, dictionaries, baselines, layout };
        self.begin(to, offer, guest, config, Some(record)).await
    }

    /// What a guest of this layout has of each baseline.
    async fn leaves_of_baselines(&self, layout: &Layout) -> Vec<Arc<Leaves>> {
        let (baselines, layout) = (Arc::clone(&self.baselines), layout.clone());
        let look = move || baselines.iter().map(|baseline| baseline.leaves_of(&layout)).collect();
        // One that panics is taken for one that the sink does not hold.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// The epoch of the pair, read where a disk keeps nobody else waiting. spec: O-7
    async fn epoch_with(&self, peer: Fingerprint) -> Result<FenceEpoch, RecordsError> {
        let records = self.records.clone();
        let read = tokio::task::spawn_blocking(move || records.fence(peer)).await;
        read.unwrap_or_else(|died| Err(self.records.unread(peer, io::Error::other(died))))
    }

    /// What the workers of a source's lanes read, and compare with.
    fn pages_of(&self, guest: &Arc<dyn Guest>, leaves: &Arc<Leaves>) -> SourcePages {
        SourcePages {
            guest: Arc::clone(guest),
            leaves: Arc::clone(leaves),
            shadow: ShadowBytes::default(),
            baselines: Arc::clone(&self.baselines),
            dictionaries: self.dictionaries.clone(),
            unread: Unread::default(),
        }
    }

    async fn begin(
        &self,
        to: &str,
        offer: Offer,
        guest: Arc<dyn Guest>,
        config: SourceConfig,
        record: Option<&Record>,
    ) -> Result<Session, EndpointError> {
        let (peer, to) = (record.map(|record| record.peer), to.to_owned());
        let (tls, sockets, capable) = (self.tls.clone(), self.sockets.clone(), self.capable());
        let (counters, threads) = (Arc::clone(&self.counters), self.threads.clone());
        let mut dialer = Dialer { to, peer, tls, sockets, capable, counters, threads };
        let spoken = self.spoken_to_begin(record.is_some())?;
        let made = first_contact(&dialer, &spoken.speaks).await?;
        if let Some(by) = spoken.declined(made.chosen.framing) {
            self.counters.declined(by);
        }
        let peer = made.channel.peer;
        dialer.peer = Some(peer);
        let mut offer = offer;
        if record.is_none() {
            // spec: O-7
            offer.epoch = self.epoch_with(peer).await.map_err(EndpointError::Records)?;
        }
        let config = SourceConfig { encoders: self.threads.encoders(), ..agreed(&config, &made) };
        let framing = config.framing;
        let leaves = Arc::new(Leaves::new(&offer.layout));
        let (transfer, methods) = (offer.transfer, Arc::<MethodCounters>::default());
        let shared = Arc::new(SourceLanes {
            pages: self.pages_of(&guest, &leaves),
            methods: Arc::clone(&methods),
            codec: self.codec.clone(),
            threads: self.threads.clone(),
            dialer,
            session: made.ack.session,
            key: made.channel.session_key,
        });
        let terms = (offer.epoch, framing);
        let machine = match record {
            Some(record) => Source::recover(config, offer, record),
            None => {
                let baselines = self.leaves_of_baselines(&offer.layout).await;
                Source::new(config, offer, leaves, peer).with_baselines(baselines)
            }
        };
        let (events, queue) = mpsc::channel(EVENTS);
        let hands = SourceHands {
            shared,
            threads: self.threads.clone(),
            events: events.clone(),
            workers: JoinSet::new(),
            lanes: BTreeMap::new(),
            terms,
            nexts: BTreeSet::new(),
            kept: BTreeMap::new(),
            attempt: 0,
            dial: None,
        };
        let control = ControlLink::start(tokio_rustls::TlsStream::Client(made.stream), 0, FROM_A_SINK, events.clone());
        let (progress, watch) = watch::channel(machine.progress().clone());
        let driver = Driver {
            machine,
            hands,
            control: Some(control),
            generation: 0,
            accuser: Accuser { conduct: Arc::clone(&self.conduct), peer },
            chores: Chores::start(guest, self.records.clone(), events.clone()),
            events: events.clone(),
            queue,
            clock: Clock::start(),
            progress,
            published: Time::default(),
            flags: Flagged::by(&self.flags),
            ledger: Ledger::open(Arc::clone(&self.counters), End::Source, framing).with_methods(methods),
        };
        Ok(Session::new(transfer, events, watch, tokio::spawn(driver.run(Vec::new(), ()))))
    }

    /// Listens for sources at `at`, an address and a port; port 0 lets the system choose.
    ///
    /// Cancel safe: dropped before it returns, nobody listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(&self, at: &str) -> Result<Listener, EndpointError> {
        Listener::open(self.clone(), at).await
    }
}

/// What was agreed on in the handshake.
fn agreed<S>(config: &SourceConfig, made: &ControlStream<S>) -> SourceConfig {
    let Chosen { framing, features } = made.chosen;
    let limits = crate::session::binding::narrow(config.limits, made.limits);
    SourceConfig { limits, framing, messages: features & MESSAGES != 0, ..config.clone() }
}

/// A connection that is lost in the middle of its handshake says nothing about the peer: it is made again a few times.
async fn first_contact(dialer: &Dialer, speaks: &Speaks) -> Result<ControlStream<TlsStream<Socket>>, EndpointError> {
    for wait in FIRST_CONTACT_WAITS {
        match dialer.control(speaks, None).await {
            Err(EndpointError::Lost { source, .. }) => {
                tracing::info!(error = %source, "the connection was lost in its handshake; once more");
                tokio::time::sleep(wait).await;
            }
            made => return made,
        }
    }
    dialer.control(speaks, None).await
}

/// 1.5 s in all: long enough for a link that flaps, short enough for an operator who named the wrong host.
const FIRST_CONTACT_WAITS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];
