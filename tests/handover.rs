//! Lanes change their framing in mid-transfer, over real sockets, while the guest writes: nothing is lost, and it comes
//! back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dwcp_core::extent::FlatPage;
use dwcp_core::flag::{FlagDocument, InProcess, NodeName};
use dwcp_core::guest::Memory;
use dwcp_core::message::{MessageCodec, MessageError, TakeBlock};
use dwcp_core::net::{
    Declined, Ending, Endpoint, HandoverReason, Identity, Incoming, Listener, Session, Statistics, Transfer, Trust,
};
use dwcp_core::session::{OnStall, Owner, Progress, SinkConfig, SourceConfig};
use dwcp_core::wire::{Framing, GuestKind, Name};
use dwcp_core::{DirtyMap, Guest, GuestError, Layout, Pending, RegionId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a node is told of version 3.
#[derive(Clone, Copy, Debug)]
enum Told {
    Off,
    /// Because of what it applied.
    Distrusted,
    On,
}

use Told::{Distrusted, Off, On};

/// A node's flags, as a control plane sets them.
struct Flags {
    source: Arc<InProcess>,
    version: AtomicU64,
}

impl Flags {
    fn new(told: Told) -> Self {
        let source = Arc::new(InProcess::new(NodeName::new("node-1").unwrap(), Duration::from_secs(60)));
        let flags = Self { source, version: AtomicU64::new(0) };
        flags.tell(told);
        flags
    }

    fn tell(&self, told: Told) {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let (on, reason) = match told {
            Off => (false, "performance"),
            Distrusted => (false, "integrity"),
            On => (true, "operator"),
        };
        let document = format!(
            r#"{{"version":{version},"flags":{{"dwcp_v3_hde":{{"enabled":{on},"percentage":100,"hash":"sha256","salt":"s",
            "exclude":[],"include":[],"kill":false,"reason":"{reason}","updated_by":"test"}}}}}}"#
        );
        self.source.set(FlagDocument::parse(document.as_bytes()).unwrap()).unwrap();
    }
}

/// Blocks as they are: what a codec must do, and nothing of version 1.
#[derive(Debug)]
struct Plain;

impl MessageCodec for Plain {
    fn block(&self, first: FlatPage, pages: &[u8], blocks: &mut Vec<u8>) -> Result<(), MessageError> {
        blocks.extend_from_slice(&first.0.to_le_bytes());
        blocks.extend_from_slice(&u32::try_from(pages.len()).unwrap().to_le_bytes());
        blocks.extend_from_slice(pages);
        Ok(())
    }

    fn wrap(&self, blocks: &[u8], wire: &mut Vec<u8>) -> Result<(), MessageError> {
        wire.extend_from_slice(blocks);
        Ok(())
    }

    fn read(&self, wire: &[u8], take: &mut TakeBlock<'_>) -> Result<(), MessageError> {
        let mut rest = wire;
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *head;
            let length = usize::try_from(u32::from_le_bytes([e, f, g, h])).unwrap();
            take(FlatPage(u32::from_le_bytes([a, b, c, d])), &after[..length])?;
            rest = &after[length..];
        }
        Ok(())
    }
}

/// Memory that its owner writes to as long as it runs, and that counts the writes.
struct Live {
    memory: Memory,
    /// Held for a write, and for a pause: after that nothing is written.
    writing: Mutex<()>,
    writes: AtomicU64,
    over: AtomicBool,
}

impl Live {
    fn start(pages: u64) -> Arc<Self> {
        let memory = Memory::new(Layout::new(&[pages * 4096]).unwrap());
        let mut state = 7_u64;
        for page in 0..pages {
            for word in 0..512 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                memory.poke(RegionId(0), page * 4096 + word * 8, state ^ state >> 31);
            }
        }
        memory.start();
        let (writes, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let live = Arc::new(Self { memory, writing: Mutex::new(()), writes, over });
        let writer = Arc::clone(&live);
        std::thread::spawn(move || {
            let mut state = 1_u64;
            while !writer.over.load(Ordering::Relaxed) {
                let writing = writer.writing.lock().unwrap();
                if writer.memory.is_running() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let page = (state >> 33) % pages;
                    writer.memory.poke(RegionId(0), page * 4096 + (state >> 20) % 4096, state);
                    writer.writes.fetch_add(1, Ordering::Relaxed);
                }
                drop(writing);
                std::thread::yield_now();
            }
        });
        live
    }
}

impl Guest for Live {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.memory.read(region, first, into)
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        self.memory.harvest(dirty)
    }

    fn pause(&self) -> Result<(), GuestError> {
        let _writing = self.writing.lock().unwrap();
        self.memory.pause()
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.memory.resume()
    }
}

/// Two nodes, what each of them wants, and a transfer from one to the other.
struct Pair {
    source: Flags,
    sink: Flags,
    guest: Arc<Live>,
    copy: Arc<Memory>,
    sending: Session,
    receiving: Session,
    way: Way,
    from: Endpoint,
    to: Endpoint,
    _listener: Listener,
}

/// The way from one node to the other, which can be cut and mended.
struct Way {
    address: String,
    open: Arc<watch::Sender<bool>>,
}

impl Way {
    async fn to(target: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let open = Arc::new(watch::channel(true).0);
        let state = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok((mut inward, _)) = listener.accept().await {
                let mut state = state.subscribe();
                if !*state.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut outward = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = state.wait_for(|open| !open) => {}
                        _ = tokio::io::copy_bidirectional(&mut inward, &mut outward) => {}
                    }
                });
            }
        });
        Self { address, open }
    }
}

async fn begin(pages: u64, source: Told, sink: Told) -> Pair {
    let (a, b) = (Identity::generate("a").unwrap(), Identity::generate("b").unwrap());
    let (source, sink) = (Flags::new(source), Flags::new(sink));
    let node = |own: &Identity, other: &Identity, flags: &Flags| {
        let endpoint = Endpoint::new(own, &Trust::fingerprints([other.fingerprint()])).unwrap();
        endpoint.with_messages(Arc::new(Plain)).with_flags(Arc::<InProcess>::clone(&flags.source))
    };
    let (from, to) = (node(&a, &b, &source), node(&b, &a, &sink));
    let mut listener = to.listen("127.0.0.1:0").await.unwrap();
    let way = Way::to(listener.local_addr()).await;
    let guest = Live::start(pages);
    let transfer = Transfer::new(Name::new("vm1").unwrap(), GuestKind::Live);
    // Slow, so that it is still under way when somebody changes his mind.
    let bandwidth = std::num::NonZeroU64::new(pages * 4096);
    let config = SourceConfig { on_stall: OnStall::Force, bandwidth, ..SourceConfig::default() };
    let sending = from.send(&way.address, transfer, Arc::<Live>::clone(&guest), config).await.unwrap();
    let Some(Incoming::Offer(offer)) = listener.accept().await else { panic!("no offer") };
    let copy = Arc::new(Memory::new(offer.offer().layout.clone()));
    let receiving = offer.accept(Arc::<Memory>::clone(&copy), SinkConfig::default());
    Pair { source, sink, guest, copy, sending, receiving, way, from, to, _listener: listener }
}

impl Pair {
    /// Waits until the source's progress is so.
    async fn until(&self, so: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.sending.progress();
        let seen = tokio::time::timeout(Duration::from_secs(60), progress.wait_for(so)).await;
        seen.expect("it does not come to that").unwrap().clone()
    }

    /// No connection is left, and none can be made.
    async fn cut(&self) {
        let before = self.sending.progress().borrow().lanes_lost;
        self.way.open.send_replace(false);
        self.until(|progress| progress.lanes_lost > before).await;
    }

    /// The end of it: at the sink, and byte by byte the same.
    async fn finish(mut self) -> Progress {
        self.sending.set_bandwidth(None);
        let (sent, received) = tokio::join!(self.sending.outcome(), self.receiving.outcome());
        assert!(sent.error.is_none() && received.error.is_none(), "{:?} {:?}", sent.error, received.error);
        assert_eq!((sent.owner, received.owner), (Owner::Sink, Owner::Sink));
        self.guest.over.store(true, Ordering::Relaxed);
        let bytes = self.guest.layout().bytes();
        for at in (0..bytes).step_by(8) {
            let words = (self.guest.memory.peek(RegionId(0), at), self.copy.peek(RegionId(0), at));
            assert_eq!(words.0, words.1, "at {at}");
        }
        assert!(self.guest.writes.load(Ordering::Relaxed) > 0);
        self.sending.progress().borrow().clone()
    }
}

// spec: V-1, V-2, V-3, V-4
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_leaves_version_3_and_comes_back_and_loses_nothing() {
    let pair = begin(2000, On, On).await;
    pair.until(|progress| progress.pages_settled > 300).await;
    pair.source.tell(Off);
    let progress = pair.until(|progress| progress.handovers == 1).await;
    assert_eq!((progress.framing, progress.epoch.0, progress.pages_disputed), (Framing::Messages, 2, 0));
    let settled = progress.pages_settled;
    pair.until(|progress| progress.pages_settled > settled + 200).await;
    pair.source.tell(On);
    let progress = pair.until(|progress| progress.handovers == 2).await;
    assert_eq!((progress.framing, progress.epoch.0), (Framing::Extents, 3));
    let settled = progress.pages_settled;
    pair.until(|progress| progress.pages_settled > settled + 200).await;
    pair.sink.tell(Off);
    pair.until(|progress| progress.handovers == 3).await;
    let progress = pair.finish().await;
    assert_eq!((progress.framing, progress.lanes_lost, progress.reconnects), (Framing::Messages, 0, 0));
}

// spec: V-5
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_trusted_is_sent_again_from_zeros() {
    let pair = begin(1500, On, On).await;
    let before = pair.until(|progress| progress.pages_settled > 700).await;
    pair.sink.tell(Distrusted);
    let progress = pair.until(|progress| progress.handovers == 1).await;
    assert!(progress.handover_log[0].restart);
    let progress = pair.finish().await;
    let carried = progress.pages_carried - before.pages_carried;
    assert!(carried >= 1500, "{carried} pages travelled after it began again");
}

// spec: H-1, H-2
#[tokio::test(flavor = "multi_thread")]
async fn either_side_may_decline_version_3_from_the_start() {
    for (source, sink) in [(Off, On), (On, Off), (Off, Off)] {
        let pair = begin(400, source, sink).await;
        assert_eq!(pair.sending.progress().borrow().framing, Framing::Messages);
        let progress = pair.finish().await;
        assert_eq!((progress.framing, progress.handovers), (Framing::Messages, 0), "{source:?} {sink:?}");
    }
}

// spec: V-1
#[tokio::test(flavor = "multi_thread")]
async fn who_declined_may_change_his_mind() {
    let pair = begin(2000, On, Off).await;
    pair.until(|progress| progress.pages_settled > 300).await;
    pair.sink.tell(On);
    pair.until(|progress| progress.handovers == 1).await;
    assert_eq!(pair.finish().await.framing, Framing::Extents);
}

// spec: V-2, V-3, B-4
#[tokio::test(flavor = "multi_thread")]
async fn a_flag_that_goes_off_during_a_partition_is_obeyed_once_the_way_is_back() {
    for (source, sink) in [(Off, On), (On, Off), (Distrusted, On), (On, Distrusted)] {
        let pair = begin(1500, On, On).await;
        pair.until(|progress| progress.pages_settled > 300).await;
        pair.cut().await;
        pair.source.tell(source);
        pair.sink.tell(sink);
        pair.way.open.send_replace(true);
        let progress = pair.until(|progress| progress.handovers == 1).await;
        assert_eq!(progress.framing, Framing::Messages);
        assert_eq!(progress.handover_log[0].restart, matches!((source, sink), (Distrusted, _) | (_, Distrusted)));
        let progress = pair.finish().await;
        assert_eq!((progress.framing, progress.reconnects), (Framing::Messages, 1), "{source:?} {sink:?}");
    }
}

// spec: V-3, V-4
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_is_cut_in_the_middle_of_hand_overs_loses_nothing() {
    let pair = begin(2500, On, On).await;
    for (round, told) in [Off, On, Distrusted, On, Off].into_iter().enumerate() {
        let Progress { pages_settled, reconnects, .. } = pair.sending.progress().borrow().clone();
        pair.until(|progress| progress.pages_settled > pages_settled + 100).await;
        pair.sink.tell(told);
        if round % 2 == 1 {
            // So that the cut finds some with FENCE under way, some before and some after it.
            pair.until(|progress| progress.handovers > 0).await;
        }
        pair.cut().await;
        pair.way.open.send_replace(true);
        let to = if matches!(told, On) { Framing::Extents } else { Framing::Messages };
        pair.until(|progress| progress.reconnects > reconnects && progress.framing == to).await;
    }
    assert_eq!(pair.finish().await.framing, Framing::Messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_count_what_their_transfers_went_through() {
    let pair = begin(2000, On, On).await;
    pair.until(|progress| progress.pages_settled > 300).await;
    pair.source.tell(Off);
    let progress = pair.until(|progress| progress.handovers == 1).await;
    let settled = progress.pages_settled;
    pair.until(|progress| progress.pages_settled > settled + 200).await;
    pair.source.tell(On);
    pair.until(|progress| progress.handovers == 2).await;
    let (from, to) = (pair.from.statistics(), pair.to.statistics());
    let live = |of: &Statistics| [of.source.v1.live, of.source.v3.live, of.sink.v1.live, of.sink.v3.live];
    assert_eq!((live(&from), live(&to)), ([0, 1, 0, 0], [0, 0, 0, 1]));
    let left = &from.source.handovers[&(Framing::Messages, HandoverReason::Performance)];
    assert_eq!((left.begun, left.done, left.struck), (1, 1, 0));
    assert_eq!((left.last_extent.count(), left.first_message.count(), left.settled.count()), (1, 1, 1));
    assert!(left.last_extent.max() <= left.settled.max() && left.settled.max() <= left.first_message.max());
    let logged = pair.sending.progress().borrow().handover_log[0];
    assert!(
        left.settled.max() >= logged.settled,
        "from the moment the flag was seen, not when the session heard of it"
    );
    let heard = &to.sink.handovers[&(Framing::Messages, HandoverReason::Peer)];
    assert_eq!((heard.begun, heard.done, heard.settled.count()), (1, 1, 0));
    let (nodes, progress) = ([pair.from.clone(), pair.to.clone()], pair.finish().await);
    let [from, to] = nodes.map(|node| node.statistics());
    for end in [&from.source, &to.sink] {
        let all = |of: fn(&dwcp_core::net::HandoverStatistics) -> u64| end.handovers.values().map(of).sum::<u64>();
        assert_eq!((all(|of| of.begun), all(|of| of.done), all(|of| of.struck)), (2, 2, 0));
        assert_eq!((end.v3.begun, end.v1.begun, end.v3.live + end.v1.live), (1, 0, 0));
        assert_eq!((end.v3.ended.get(&Ending::SwitchedOver), end.v1.ended.len()), (Some(&1), 0));
        assert!(end.v1.guest_bytes > 0 && end.v3.guest_bytes > 0);
        assert_eq!((end.pages_disputed, end.handovers_disputed), (0, 0));
    }
    assert_eq!(from.source.v1.wire_bytes + from.source.v3.wire_bytes, progress.wire_bytes);
    assert_eq!(from.source.v1.guest_bytes + from.source.v3.guest_bytes, progress.pages_settled * 4096);
    assert!(from.declined.is_empty() && from.refused.is_empty() && to.declined.is_empty() && to.refused.is_empty());
    assert_eq!(from.flag.stats.version.map(dwcp_core::flag::FlagVersion::value), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_declined_version_3_is_counted_at_both_ends() {
    use Declined::{Disabled, Peer};
    for (source, sink, by) in [(Off, On, [Disabled, Peer]), (On, Off, [Peer, Disabled]), (Off, Off, [Disabled; 2])] {
        let pair = begin(50, source, sink).await;
        for (node, by) in [&pair.from, &pair.to].into_iter().zip(by) {
            assert_eq!(node.statistics().declined, [(by, 1)].into());
        }
        assert_eq!((pair.from.statistics().source.v1.begun, pair.to.statistics().sink.v1.begun), (1, 1));
        pair.finish().await;
    }
}
