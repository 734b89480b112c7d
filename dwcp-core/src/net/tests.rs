//! What only the drivers can get wrong, and only from inside can be seen.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::thread::{self, ThreadId};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::clock::Clock;
use super::conduct::{Accuser, Conduct, FROM_A_SINK};
use super::dial::{Dialer, HANDSHAKE_LIMIT, Sockets};
use super::driver::{Chores, Driver, EVENTS, Event, Flagged, Hands, Stream, supersede};
use super::lane_source::{Press, ShadowBytes, Sheet, SourcePages, Unread};
use super::statistics::{End, Ledger};
use super::threads::Threads;
use super::tls::Tls;
use super::{
    Endpoint, EndpointError, Fingerprint, Identity, Incoming, Listener, Quarantine, Records, Transfer, Trust,
    TurnedAway,
};
use crate::extent::{Extent, Layout, PAGE_BYTES, PageMask, RegionId, Run};
use crate::flag::{Constant, FlagSource};
use crate::guest::{DirtyMap, Guest, GuestError, Memory, Pending};
use crate::session::allowance::Rate;
use crate::session::binding::Speaks;
use crate::session::leaves::{extent_digest, leaf};
use crate::session::{
    Dispatch, Input, Leaves, Machine, Outcome, Output, Owner, Progress, Record, SessionError, SourceConfig, Standing,
    Time,
};
use crate::storage::{Disk, File, Folder, Stat};
use crate::wire::{Digest, ExtentHead, FRAME_HEADER_BYTES, FenceEpoch, Framing, GuestKind, LaneId, Name, TransferId};

fn dialer(to: String) -> Dialer {
    let identity = Identity::generate("a").unwrap();
    let trust = Trust::fingerprints([identity.fingerprint()]);
    let capable = Speaks::new(false, Framing::Extents).unwrap();
    Dialer {
        to,
        peer: None,
        tls: Tls::new(&identity, &trust).unwrap(),
        sockets: Sockets::default(),
        capable,
        counters: Arc::default(),
        threads: Threads::start().unwrap(),
    }
}

// spec: H-9
#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let began = tokio::time::Instant::now();
    let dialer = dialer(silent.local_addr().unwrap().to_string());
    let error = dialer.control(&dialer.capable, None).await.unwrap_err();
    assert!(matches!(error, EndpointError::Timeout { .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), HANDSHAKE_LIMIT.as_secs());
}

// spec: H-9
#[tokio::test(start_paused = true)]
async fn a_caller_that_never_speaks_is_hung_up_on() {
    let identity = Identity::generate("b").unwrap();
    let sink = Endpoint::new(&identity, &Trust::fingerprints([identity.fingerprint()])).unwrap();
    let listener = sink.listen("127.0.0.1:0").await.unwrap();
    let mut caller = TcpStream::connect(listener.local_addr()).await.unwrap();
    let began = tokio::time::Instant::now();
    // Without a limit of its own: the socket is closed by another thread, which this clock does not wait for.
    assert!(!matches!(caller.read(&mut [0]).await, Ok(1..)), "closed or reset");
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!(sink.offences().turned_away[&TurnedAway::TimedOut], 1);
}

/// A guest in which every byte read is another one than the last.
struct Restless {
    layout: Layout,
    next: AtomicU8,
}

impl Guest for Restless {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, _: RegionId, _: u32, into: &mut [u8]) -> Result<(), GuestError> {
        into.fill_with(|| self.next.fetch_add(1, Ordering::Relaxed) / 2 + 1);
        into.iter_mut().step_by(7).for_each(|byte| *byte ^= self.next.fetch_add(3, Ordering::Relaxed));
        Ok(())
    }
}

// spec: I-1
#[test]
fn what_is_hashed_is_what_is_sent() {
    let layout = Layout::new(&[4096 * 8]).unwrap();
    let leaves = Arc::new(Leaves::new(&layout));
    let pages = SourcePages {
        dictionaries: super::dictionaries::Held::default(),
        unread: Unread::default(),
        guest: Arc::new(Restless { layout, next: AtomicU8::new(1) }),
        leaves: Arc::clone(&leaves),
        shadow: ShadowBytes::default(),
        baselines: [].into(),
    };
    let extent = Extent::new(RegionId(0), vec![Run { start: 1, count: 3 }]).unwrap();
    let dispatch = Dispatch {
        lane: LaneId(1),
        seq: 0,
        extent: extent.clone(),
        known: PageMask::EMPTY,
        slots: vec![],
        based: PageMask::EMPTY,
        effort: dwcp_hde::Effort::Balanced,
        dictionaries: 0,
        baseline: None,
    };
    let mut press = Press::new();
    let sheet = press.print(&pages, FenceEpoch(1), &dispatch, Sheet::default()).unwrap();
    let frame = [&sheet.head[..], sheet.body()].concat();
    let (head, block) = ExtentHead::decode(&frame[FRAME_HEADER_BYTES..]).unwrap();
    let mut scratch = Vec::new();
    let plain = dwcp_hde::Decoder::new().decode(block, 3, &mut dwcp_hde::Bases::none(), &mut scratch).unwrap();
    let sent: Vec<_> = plain.chunks(PAGE_BYTES).map(leaf).collect();
    assert_eq!(extent_digest(FenceEpoch(1), &extent, &sent), head.digest);
    for (page, digest) in (1..4).zip(sent) {
        assert_eq!(leaves.get(crate::extent::FlatPage(page)), digest, "the leaf that the root is made of");
    }
}

/// A guest that answers nothing until the test ends, and counts how often it was resumed.
struct Mute {
    layout: Layout,
    released: Mutex<blocking::Receiver<()>>,
    resumed: AtomicU8,
}

impl Guest for Mute {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, _: RegionId, _: u32, _: &mut [u8]) -> Result<(), GuestError> {
        Ok(())
    }

    fn harvest(&self, _: &mut DirtyMap) -> Result<Pending, GuestError> {
        let _ = self.released.lock().unwrap().recv();
        Ok(Pending::Unknown)
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.resumed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A machine that asks for more than any guest is asked for, and that resumes the guest when it fails.
#[derive(Default)]
struct Greedy {
    outputs: std::collections::VecDeque<Output>,
    progress: Progress,
    holds: Option<blocking::Sender<()>>,
}

impl Machine for Greedy {
    fn handle(&mut self, _: Time, input: Input) {
        match input {
            Input::Start => self.outputs.extend((0..100).map(|_| Output::Harvest)),
            Input::GuestFailed(error) => {
                self.holds = None;
                self.outputs.push_back(Output::Resume);
                let error = Some(SessionError::Guest(error));
                self.outputs.push_back(Output::Finished(Outcome { owner: Owner::Source, error }));
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// Its second dial is the one that counts.
struct NoHands;

impl Hands for NoHands {
    #[cfg(feature = "planted-bugs")]
    const END: &'static str = "test";
    const HEARS: Rate = FROM_A_SINK;

    fn perform(&mut self, output: Output) -> Option<Output> {
        Some(output)
    }

    fn hold_lane(&mut self, _: LaneId, _: Stream) -> bool {
        false
    }

    fn keep(&mut self, _: LaneId, _: Stream) {}

    fn dials(&self, attempt: u32) -> bool {
        attempt == 2
    }

    async fn stop(&mut self) {}
}

/// A machine that ends with the first news of a dial.
#[derive(Default)]
struct Dialling {
    over: Option<Output>,
    progress: Progress,
}

impl Machine for Dialling {
    fn handle(&mut self, _: Time, input: Input) {
        let error = match input {
            Input::SessionLost => SessionError::PeerRestarted,
            Input::ControlDown { .. } => SessionError::Cancelled,
            _ => return,
        };
        self.over = Some(Output::Finished(Outcome { owner: Owner::Source, error: Some(error) }));
    }

    fn poll(&mut self) -> Option<Output> {
        self.over.take()
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// The sink knows an earlier attempt no more once it has heard a later one, which is no end of the session. spec: H-6
#[tokio::test]
async fn only_the_latest_dial_of_the_control_connection_is_believed() {
    let (_hold, released) = blocking::channel();
    let layout = Layout::new(&[4096]).unwrap();
    let guest = Arc::new(Mute { layout, released: Mutex::new(released), resumed: AtomicU8::new(0) });
    let driver = driver(Dialling::default(), &guest);
    for (attempt, session_unknown) in [(1, true), (3, true), (2, false)] {
        let event = Box::new(Event::RedialFailed { session_unknown });
        driver.events.send(Event::Redialled { attempt, event }).await.unwrap();
    }
    let outcome = driver.run(vec![], ()).await;
    assert!(matches!(outcome.error, Some(SessionError::Cancelled)), "{outcome:?}");
}

fn driver<M: Machine + Send>(machine: M, guest: &Arc<Mute>) -> Driver<M, NoHands> {
    let (events, queue) = tokio::sync::mpsc::channel(EVENTS);
    let flags: Arc<dyn FlagSource> = Arc::new(Constant::v3());
    Driver {
        machine,
        hands: NoHands,
        control: None,
        generation: 0,
        accuser: Accuser { conduct: Arc::new(Conduct::new(Quarantine::default())), peer: Fingerprint([0; 32]) },
        chores: Chores::start(Arc::<Mute>::clone(guest), Records::none(), events.clone()),
        events,
        queue,
        clock: Clock::start(),
        progress: tokio::sync::watch::channel(Progress::default()).0,
        published: Time::default(),
        flags: Flagged::by(&flags),
        ledger: Ledger::open(Arc::default(), End::Sink, Framing::Extents),
    }
}

#[tokio::test]
async fn a_guest_that_answers_nothing_fails_the_session_and_is_resumed_all_the_same() {
    let (hold, released) = blocking::channel();
    let layout = Layout::new(&[4096]).unwrap();
    let guest = Arc::new(Mute { layout, released: Mutex::new(released), resumed: AtomicU8::new(0) });
    let driver = driver(Greedy { holds: Some(hold), ..Greedy::default() }, &guest);
    let outcome = driver.run(vec![], ()).await;
    let Some(SessionError::Guest(error @ GuestError::Stuck { waiting: 64 })) = outcome.error else {
        panic!("{outcome:?}")
    };
    assert!(error.to_string().contains("look why it does not answer"), "{error}");
    assert_eq!(guest.resumed.load(Ordering::Relaxed), 1);
}

/// A machine that is over while its guest is at work.
#[derive(Default)]
struct Hasty {
    outputs: std::collections::VecDeque<Output>,
    progress: Progress,
}

impl Machine for Hasty {
    fn handle(&mut self, _: Time, input: Input) {
        if matches!(input, Input::Start) {
            let over = Outcome { owner: Owner::Source, error: Some(SessionError::Superseded) };
            self.outputs.extend([Output::Harvest, Output::Finished(over)]);
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// Another session would make something else of the image that this one still writes to.
// spec: O-5
#[tokio::test(start_paused = true)]
async fn a_place_is_free_when_nothing_of_the_session_is_at_work_any_more() {
    let (hold, released) = blocking::channel();
    let layout = Layout::new(&[4096]).unwrap();
    let guest = Arc::new(Mute { layout, released: Mutex::new(released), resumed: AtomicU8::new(0) });
    let place = Arc::new(());
    let seen = Arc::downgrade(&place);
    let running = tokio::spawn(driver(Hasty::default(), &guest).run(vec![], place));
    while !running.is_finished() {
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }
    assert!(matches!(running.await.unwrap().error, Some(SessionError::Superseded)));
    assert_eq!(seen.strong_count(), 1, "its guest is at work");
    drop(hold);
    while seen.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

/// While it winds up nobody answers for it any more: a sender that comes back waits for its end, and not for an answer.
// spec: O-5
#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_is_known_to_be_over_at_once() {
    let (events, queue) = tokio::sync::mpsc::channel(EVENTS);
    let began = tokio::time::Instant::now();
    let waits = tokio::time::timeout(HANDSHAKE_LIMIT, supersede(&events, true));
    let gone = async {
        tokio::task::yield_now().await;
        drop(queue);
    };
    assert_eq!(tokio::join!(waits, gone).0, Ok(true), "asked before");
    assert_eq!(tokio::time::timeout(HANDSHAKE_LIMIT, supersede(&events, true)).await, Ok(true), "asked after");
    assert_eq!(began.elapsed().as_millis(), 0);
}

/// A folder that knows who ever waited for it.
#[derive(Debug)]
struct Watched {
    disk: Disk,
    /// The one thread of the runtime.
    runtime: ThreadId,
    waited: Arc<AtomicBool>,
}

impl Watched {
    fn disk(&self) -> &Disk {
        self.waited.fetch_or(thread::current().id() == self.runtime, Ordering::Relaxed);
        &self.disk
    }
}

impl Folder for Watched {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk().open(name)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.disk().create(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.disk().stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk().list()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().replace(from, to)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().link(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk().remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk().sync()
    }
}

/// A node whose records are watched, and what was there before.
struct Node {
    endpoint: Endpoint,
    records: Records,
    waited: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(own: &Identity, peer: &Identity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, runtime) = (Disk::open(dir.path()).unwrap(), thread::current().id());
        let waited = Arc::<AtomicBool>::default();
        let mut endpoint = Endpoint::new(own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
        endpoint.records = Records::over(Arc::new(Watched { disk, runtime, waited: Arc::clone(&waited) }));
        Self { endpoint, records: Records::open(dir.path()).unwrap(), waited, _dir: dir }
    }

    /// What the first frames of its sessions say.
    async fn next(listener: &mut Listener) -> (TransferId, FenceEpoch) {
        match listener.accept().await.unwrap() {
            Incoming::Offer(offer) => (offer.offer().transfer, offer.offer().epoch),
            Incoming::Ask(ask) => (ask.record().transfer, ask.record().epoch),
        }
    }
}

/// Two hung calls would stop a runtime of two threads, and the pings of all sessions with it.
#[tokio::test]
async fn a_runtime_waits_for_no_record_when_something_is_offered_or_asked() {
    let [a, b] = ["a", "b"].map(|name| Identity::generate(name).unwrap());
    let (source, sink) = (Node::new(&a, &b), Node::new(&b, &a));
    let layout = Layout::new(&[4096]).unwrap();
    let record = |transfer, peer: &Identity, standing| Record {
        transfer,
        epoch: FenceEpoch(1),
        attempt: 1,
        root: Digest([2; 32]),
        name: Name::new("vm").unwrap(),
        layout: layout.clone(),
        peer: peer.fingerprint(),
        standing,
    };
    let (offered, asked) = (TransferId([1; 16]), TransferId([2; 16]));
    source.records.raise_fence(b.fingerprint(), FenceEpoch(5)).unwrap();
    // One promise is taken back, one is asked about.
    sink.records.store(&record(offered, &a, Standing::Ready)).unwrap();
    sink.records.store(&record(asked, &a, Standing::Ready)).unwrap();
    let mut listener = sink.endpoint.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().to_string();

    let transfer = Transfer { id: offered, ..Transfer::new(Name::new("vm").unwrap(), GuestKind::Image) };
    let guest = Arc::new(Memory::new(layout.clone()));
    let _sending = source.endpoint.send(&address, transfer, guest, SourceConfig::default()).await.unwrap();
    assert_eq!(Node::next(&mut listener).await, (offered, FenceEpoch(5)));
    let gave_up = record(asked, &b, Standing::GaveUp);
    let _asking = source.endpoint.ask(&address, &gave_up, SourceConfig::default()).await.unwrap();
    assert_eq!(Node::next(&mut listener).await, (asked, FenceEpoch(1)));

    assert_eq!(sink.records.fence(a.fingerprint()).unwrap(), FenceEpoch(5));
    assert!(sink.records.load(offered).unwrap().is_none() && sink.records.load(asked).unwrap().is_some());
    assert_eq!([&source, &sink].map(|node| node.waited.load(Ordering::Relaxed)), [false; 2], "source, sink");
}
