//! The matrix of `docs/compatibility.md`: legacy v1, dual with version 3 off and on, and v3-only, in both roles. The legacy
//! peer shares no line with the product.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::as_conversions,
    clippy::big_endian_bytes,
    reason = "clippy excuses the tests themselves, but not what they call"
)]

#[path = "../dwcp-v1-compat/tests/legacy/mod.rs"]
mod legacy;
mod operator;
#[path = "compatibility/processes.rs"]
mod processes;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use dwcp_core::flag::{FlagDocument, InProcess, NodeName};
use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, EndpointError, Identity, Statistics, Transfer, Trust, TurnedAway, VersionRefusal};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::{self, GuestKind, Name};
use dwcp_core::{Guest, Layout, RegionId};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::message::{Assurance, Deadlines, Shape};
use dwcp_v1_compat::net::{
    DualListener, Ended, Form, Incoming, MigrateOptions, PlaintextPolicy, ReceiveOptions, SendOptions, Session,
    SpokenV3, Tally, TransferEnding, TransferError, dial, send_memory,
};
use dwcp_v1_compat::wire::{Framing, Tier};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(20);
const PAGES: usize = 300;
const BYTES: usize = PAGES * 4096;

/// What a node that was updated is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    DualOff,
    DualOn,
    V3Only,
}

use Node::{DualOff, DualOn, V3Only};

impl Node {
    fn endpoint(self, own: &Identity, other: &Identity) -> Endpoint {
        let endpoint = Endpoint::new(own, &Trust::fingerprints([other.fingerprint()])).unwrap();
        if self == V3Only {
            return endpoint;
        }
        let source = InProcess::new(NodeName::new("node-1").unwrap(), Duration::from_secs(60));
        let document = format!(
            r#"{{"version":1,"flags":{{"dwcp_v3_hde":{{"enabled":{},"percentage":100,"hash":"sha256","salt":"s",
            "exclude":[],"include":[],"kill":false,"reason":"operator","updated_by":"test"}}}}}}"#,
            self == DualOn
        );
        source.set(FlagDocument::parse(document.as_bytes()).unwrap()).unwrap();
        endpoint.with_messages(Arc::new(Amst16 { tier: Tier::Local })).with_flags(Arc::new(source))
    }
}

fn identities() -> (Identity, Identity) {
    (Identity::generate("a").unwrap(), Identity::generate("b").unwrap())
}

fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let word = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state ^ state >> 31
    };
    (0..BYTES / 8).map(word).flat_map(u64::to_le_bytes).collect()
}

fn memory(bytes: &[u8]) -> Arc<Memory> {
    let guest = Memory::new(Layout::new(&[BYTES as u64]).unwrap());
    guest.write(RegionId(0), 0, bytes).unwrap();
    Arc::new(guest)
}

fn blank() -> Arc<Memory> {
    Arc::new(Memory::new(Layout::new(&[BYTES as u64]).unwrap()))
}

fn holds(guest: &Memory, bytes: &[u8]) -> bool {
    let mut all = vec![0; BYTES];
    guest.read(RegionId(0), 0, &mut all).unwrap();
    all == bytes
}

fn options() -> ReceiveOptions {
    let shape = Shape::Amst16 { most_bytes: u64::from(u32::MAX), most_chunk_bytes: 1 << 20 };
    ReceiveOptions { shape, most_connections: 256, deadlines: Deadlines::default(), tally: Tally::default() }
}

fn allows(addresses: &[IpAddr]) -> PlaintextPolicy {
    PlaintextPolicy::new(Framing::Amst16, addresses.iter().copied())
}

async fn listen(endpoint: &Endpoint, policy: PlaintextPolicy) -> (DualListener, Arc<SpokenV3>) {
    let spoken = Arc::new(SpokenV3::default());
    let listener = DualListener::listen(endpoint.clone(), "127.0.0.1:0", policy, Arc::clone(&spoken)).await.unwrap();
    (listener, spoken)
}

async fn next(listener: &mut DualListener) -> Incoming {
    tokio::time::timeout(SOON, listener.accept()).await.expect("nobody comes").unwrap()
}

/// One memory image from a legacy peer, taken at a port.
async fn take_legacy(listener: &mut DualListener, data: &[u8]) {
    let packet = legacy::packet(0, 0, data);
    let writer = legacy::dial_and_write(listener.local_addr(), legacy::amst16_streams(&packet, 65_536, 16));
    let Incoming::V1(arrival) = next(listener).await else { panic!("not version 1") };
    assert_eq!(arrival.from(), LOCAL);
    let guest = blank();
    let options = ReceiveOptions { tally: listener.tally(), ..options() };
    let mut session = Session::V1(arrival.take(Arc::<Memory>::clone(&guest), Form::Memory(None), options));
    assert_eq!(session.version(), 1);
    let Ended::V1(received) = session.outcome().await else { panic!("it was version 1") };
    assert_eq!(received.unwrap().assurance, Assurance::Checksums, "never more than version 1 can say");
    assert!(holds(&guest, data));
    writer.join().unwrap();
}

/// A transfer between nodes that were updated: what its lanes carried.
async fn move_between(source: Node, sink: Node) -> Result<wire::Framing, EndpointError> {
    let (a, b) = identities();
    let (mut listener, spoken) = listen(&sink.endpoint(&b, &a), allows(&[])).await;
    let framing = v3_transfer(&source.endpoint(&a, &b), &mut listener).await?;
    assert!(spoken.holds(LOCAL));
    Ok(framing)
}

async fn v3_transfer(from: &Endpoint, listener: &mut DualListener) -> Result<wire::Framing, EndpointError> {
    let (data, to) = (bytes(3), listener.local_addr().to_string());
    let transfer = Transfer::new(Name::new("vm1").unwrap(), GuestKind::Live);
    let guest = memory(&data);
    guest.start();
    let mut sending = from.send(&to, transfer, guest, SourceConfig::default()).await?;
    let Incoming::V3(incoming) = next(listener).await else { panic!("not version 3") };
    let dwcp_core::net::Incoming::Offer(offer) = *incoming else { panic!("no offer") };
    let copy = blank();
    let mut receiving = Session::V3(offer.accept(Arc::<Memory>::clone(&copy), SinkConfig::default()));
    assert_eq!(receiving.version(), 3);
    let (sent, received) = tokio::join!(sending.outcome(), receiving.outcome());
    let Ended::V3(received) = received else { panic!("it was version 3") };
    assert_eq!((sent.owner, received.owner), (Owner::Sink, Owner::Sink), "{sent:?}");
    assert!(holds(&copy, &data));
    let framing = sending.progress().borrow().framing;
    Ok(framing)
}

async fn legacy_sends_to(node: Node) {
    let (a, b) = identities();
    let (mut listener, _) = listen(&node.endpoint(&b, &a), allows(&[LOCAL])).await;
    take_legacy(&mut listener, &bytes(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_to_dual_off() {
    legacy_sends_to(DualOff).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn legacy_to_dual_on() {
    legacy_sends_to(DualOn).await;
}

/// Hung up on: TLS has no use for a chunk.
#[tokio::test(flavor = "multi_thread")]
async fn legacy_to_v3_only() {
    let (a, b) = identities();
    let endpoint = V3Only.endpoint(&b, &a);
    let listener = endpoint.listen("127.0.0.1:0").await.unwrap();
    let chunk = legacy::amst16_chunk(&bytes(1), 65_536, 0);
    hung_up_on(listener.local_addr(), chunk).await;
    assert_eq!(endpoint.offences().turned_away[&TurnedAway::NotAuthenticated], 1);
}

/// Says this, and waits until the other end hangs up.
async fn hung_up_on(to: SocketAddr, says: Vec<u8>) {
    let end = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let _ = stream.write_all(&says);
        // An alert of TLS may come first; a reset is an end, too.
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).err().map(|error| error.kind())
    });
    let end = end.await.unwrap();
    assert!(end.is_none_or(|kind| kind != std::io::ErrorKind::WouldBlock), "it was not hung up on");
}

/// A dual node sends to a legacy peer as version 1, whatever its flag says: nothing else is understood there.
#[tokio::test(flavor = "multi_thread")]
async fn dual_to_legacy() {
    let policy = allows(&[LOCAL]);
    let (address, reader) = legacy::amst16_listen_and_read(4);
    policy.allows(address.ip(), &SpokenV3::default()).unwrap();
    let data = bytes(5);
    let send = SendOptions::new(policy.framing());
    let options = MigrateOptions { send, tier: Tier::Local, spool: std::env::temp_dir() };
    let sent = send_memory(memory(&data), options, move || dial(address, 4, SOON)).await.unwrap();
    assert!(sent.closed, "and that is all that can be known");
    assert!(legacy::unpack(&reader.join().unwrap()) == data);
}

/// What a v1 peer does with a TLS ClientHello: its first byte is neither 0 nor 1.
#[tokio::test(flavor = "multi_thread")]
async fn v3_only_to_legacy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = std::thread::spawn(move || {
        // The first contact, and its four repetitions.
        for stream in listener.incoming().take(5) {
            let mut first = [0];
            stream.unwrap().read_exact(&mut first).unwrap();
            assert!(first[0] > 1);
        }
    });
    let (a, b) = identities();
    let transfer = Transfer::new(Name::new("vm1").unwrap(), GuestKind::Live);
    let guest = memory(&bytes(6));
    guest.start();
    let held = Arc::<Memory>::clone(&guest);
    let refused = V3Only.endpoint(&a, &b).send(&address, transfer, held, SourceConfig::default()).await;
    assert!(refused.is_err());
    assert!(guest.is_running(), "it runs where it was");
    peer.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_on_to_dual_on() {
    assert_eq!(move_between(DualOn, DualOn).await.unwrap(), wire::Framing::Extents);
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_on_to_dual_off() {
    assert_eq!(move_between(DualOn, DualOff).await.unwrap(), wire::Framing::Messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_off_to_dual_on() {
    assert_eq!(move_between(DualOff, DualOn).await.unwrap(), wire::Framing::Messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_off_to_dual_off() {
    assert_eq!(move_between(DualOff, DualOff).await.unwrap(), wire::Framing::Messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_on_and_v3_only() {
    assert_eq!(move_between(DualOn, V3Only).await.unwrap(), wire::Framing::Extents);
    assert_eq!(move_between(V3Only, DualOn).await.unwrap(), wire::Framing::Extents);
    assert_eq!(move_between(V3Only, V3Only).await.unwrap(), wire::Framing::Extents);
}

/// Nothing in common: refused before anything is moved.
#[tokio::test(flavor = "multi_thread")]
async fn dual_off_and_v3_only() {
    let (a, b) = identities();
    for (source, sink, seen) in [
        (DualOff, V3Only, [VersionRefusal::NoVersion, VersionRefusal::NoVersion]),
        // A sink that has another version says in the handshake what it wants, and so is told why.
        (V3Only, DualOff, [VersionRefusal::RefusedByPeer, VersionRefusal::NoVersion]),
    ] {
        let (from, to) = (source.endpoint(&a, &b), sink.endpoint(&b, &a));
        let (mut listener, _) = listen(&to, allows(&[])).await;
        let refused = v3_transfer(&from, &mut listener).await.unwrap_err();
        assert!(!refused.to_string().is_empty());
        for (node, why) in [&from, &to].into_iter().zip(seen) {
            let statistics = once_refused(node).await;
            assert_eq!(statistics.refused, [(why, 1)].into(), "{source:?} {sink:?}: {refused}");
            assert_eq!((statistics.source.v3.begun, statistics.sink.v3.begun), (0, 0));
        }
    }
}

/// A TLS alert is with the peer before who sent it comes to count it.
async fn once_refused(node: &Endpoint) -> Statistics {
    let counted = async {
        loop {
            let statistics = node.statistics();
            if !statistics.refused.is_empty() {
                return statistics;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, counted).await.expect("nothing was refused here")
}

// spec: H-12
#[tokio::test(flavor = "multi_thread")]
async fn one_port_takes_both_and_refuses_version_1_from_who_spoke_version_3() {
    let (a, b) = identities();
    let endpoint = DualOn.endpoint(&b, &a);
    let (mut listener, spoken) = listen(&endpoint, allows(&[LOCAL])).await;
    take_legacy(&mut listener, &bytes(1)).await;
    take_legacy(&mut listener, &bytes(2)).await;
    assert!(!spoken.holds(LOCAL));
    assert_eq!(v3_transfer(&DualOn.endpoint(&a, &b), &mut listener).await.unwrap(), wire::Framing::Extents);
    let counts = listener.counts();
    assert_eq!((counts.started, counts.garbage), (2, 0));
    // Of the connections that came before its first one was authenticated.
    assert!(counts.tls >= 1, "{counts:?}");
    // From here on it is a downgrade.
    hung_up_on(listener.local_addr(), legacy::amst16_chunk(&bytes(1), 65_536, 0)).await;
    assert_eq!(endpoint.offences().turned_away[&TurnedAway::DowngradeRefused], 1);
    let statistics = listener.statistics();
    assert_eq!(statistics.node.refused, [(VersionRefusal::SpokeV3, 1)].into());
    assert_eq!((statistics.port, statistics.node.sink.v3.begun), (listener.counts(), 1));
    assert_eq!((statistics.received.begun, statistics.received.ended), (2, [(TransferEnding::Done, 2)].into()));
    assert_eq!((statistics.received.live, statistics.silent_now), (0, 0));
    // Unless the operator allows that, too.
    let policy = allows(&[LOCAL]).with_downgrade(true);
    let mut listener = DualListener::listen(endpoint, "127.0.0.1:0", policy, spoken).await.unwrap();
    take_legacy(&mut listener, &bytes(2)).await;
}

// spec: H-12
#[tokio::test(flavor = "multi_thread")]
async fn version_1_from_an_address_that_nobody_named_and_garbage_are_hung_up_on_and_counted() {
    let (a, b) = identities();
    let elsewhere: IpAddr = "10.0.0.7".parse().unwrap();
    let chunk = legacy::amst16_chunk(&bytes(1), 65_536, 0);
    for (allowed, says, why) in [
        (elsewhere, chunk.clone(), TurnedAway::ClearText),
        (elsewhere, b"GET / HTTP/1.1\r\n\r\n".to_vec(), TurnedAway::NotAuthenticated),
        (LOCAL, b"SSH-2.0-OpenSSH\r\n".to_vec(), TurnedAway::NotAuthenticated),
    ] {
        let endpoint = DualOn.endpoint(&b, &a);
        let (listener, _) = listen(&endpoint, allows(&[allowed])).await;
        hung_up_on(listener.local_addr(), says).await;
        let counted = endpoint.offences();
        assert_eq!(counted.turned_away.get(&why), Some(&1), "{counted:?}");
        let clear_text = endpoint.statistics().refused.get(&VersionRefusal::ClearText).copied();
        assert_eq!(clear_text, (why == TurnedAway::ClearText).then_some(1));
        assert!(counted.charged.is_empty(), "an address can be forged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_may_come_a_byte_at_a_time_and_its_peer_may_be_dropped() {
    let (a, b) = identities();
    let (mut listener, _) = listen(&DualOn.endpoint(&b, &a), allows(&[LOCAL])).await;
    let address = listener.local_addr();
    let chunk = legacy::amst16_chunk(&bytes(1), 65_536, 0);
    let (begun, begin) = std::sync::mpsc::channel();
    let peer = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in &chunk[..16] {
            stream.write_all(&[*byte]).unwrap();
        }
        begun.send(()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read(&mut [0])
    });
    let Incoming::V1(arrival) = next(&mut listener).await else { panic!("not version 1") };
    begin.recv().unwrap();
    let mut session = arrival.take(blank(), Form::Memory(None), options());
    session.cancel();
    assert!(matches!(session.outcome().await, Err(TransferError::Cancelled)));
    // Its end, or a reset because of the byte that nobody read.
    assert!(peer.join().unwrap().map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |read| read == 0));
    // Its address has its place again.
    take_legacy(&mut listener, &bytes(4)).await;
}

#[test]
fn who_spoke_version_3_is_remembered_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spoken-v3");
    let spoken = SpokenV3::open(&file).unwrap();
    spoken.remember("::ffff:10.0.0.7".parse().unwrap());
    spoken.remember("2001:db8::1".parse().unwrap());
    let again = SpokenV3::open(&file).unwrap();
    assert!(again.holds("10.0.0.7".parse().unwrap()) && again.holds("2001:db8::1".parse().unwrap()));
    assert!(!again.holds("10.0.0.8".parse().unwrap()));
    // A file that is none is no reason to believe that nobody did.
    let half_an_address = "10.0.0.7\n10.0.0.1";
    for text in ["10.0.0.7\nten\n", half_an_address, &"10.0.0.7\n".repeat(40_000)] {
        std::fs::write(&file, text).unwrap();
        assert!(SpokenV3::open(&file).unwrap_err().to_string().contains("spoken-v3"));
    }
    // What cannot be written is remembered by this process, and counted.
    assert_eq!(again.unwritten(), 0);
    drop(folder);
    again.remember("10.0.0.9".parse().unwrap());
    assert!(again.holds("10.0.0.9".parse().unwrap()));
    assert_eq!(again.unwritten(), 1);
}

/// An idle v1 peer closes and dials every connection again about 61 s after its last byte, also within a message.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dials_again_in_the_middle_goes_on_with_its_message() {
    let (a, b) = identities();
    let (mut listener, _) = listen(&DualOn.endpoint(&b, &a), allows(&[LOCAL])).await;
    let (address, data) = (listener.local_addr(), bytes(7));
    let packet = legacy::packet(0, 0, &data);
    let chunks = packet.len().div_ceil(65_536);
    let peer = std::thread::spawn(move || {
        for ids in [0..chunks / 2, chunks / 2..chunks] {
            let mut stream = TcpStream::connect(address).unwrap();
            ids.for_each(|id| stream.write_all(&legacy::amst16_chunk(&packet, 65_536, id)).unwrap());
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Until the node has seen the end of it, and closes, too.
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
    let Incoming::V1(arrival) = next(&mut listener).await else { panic!("not version 1") };
    let guest = blank();
    let options = ReceiveOptions { tally: listener.tally(), ..options() };
    let mut session = arrival.take(Arc::<Memory>::clone(&guest), Form::Memory(None), options);
    let received = session.outcome().await.unwrap();
    assert!(holds(&guest, &data));
    assert_eq!((received.connections, received.duplicates), (2, 0));
    let statistics = listener.statistics();
    assert_eq!((statistics.port.started, statistics.port.joined), (1, 1));
    peer.join().unwrap();
}

/// Each defect of a peer, as it comes to a port: a typed error, one counter of its kind, and nothing visible.
#[tokio::test(flavor = "multi_thread")]
async fn a_defective_message_at_the_port_raises_its_own_counters_and_frees_its_place() {
    let (a, b) = identities();
    let (mut listener, _) = listen(&DualOn.endpoint(&b, &a), allows(&[LOCAL])).await;
    let data = bytes(8);
    let packet = legacy::packet(0, 0, &data);
    let chunk = |id| legacy::amst16_chunk(&packet, 65_536, id);
    let whole = || legacy::amst16_streams(&packet, 65_536, 2);
    let mixed = [chunk(0), legacy::amst16_chunk(&packet[..100_000], 65_536, 1)].concat();
    let twice = [chunk(0), chunk(0)].concat();
    let mut huge = chunk(0);
    huge[8..12].copy_from_slice(&0xc000_0000_u32.to_be_bytes());
    let mut torn = whole();
    torn[0].pop();
    // A header of a second chunk that claims 3 GiB; the first bytes of a connection that do are no version 1 at all.
    let far = [chunk(0), huge].concat();
    let mut ended = std::collections::BTreeMap::new();
    for (streams, name) in [
        (vec![mixed], "mixed_totals"),
        (vec![twice], "duplicate"),
        (vec![chunk(0)], "missing"),
        (torn, "torn"),
        (vec![far], "duplicate length"),
    ] {
        let before: Vec<_> = listener.statistics().defects.all().collect();
        let writer = legacy::dial_and_write(listener.local_addr(), streams);
        let Incoming::V1(arrival) = next(&mut listener).await else { panic!("not version 1") };
        let deadlines = Deadlines { redial: Duration::from_millis(50), ..Deadlines::default() };
        let options = ReceiveOptions { tally: listener.tally(), deadlines, ..options() };
        let mut session = arrival.take(blank(), Form::Memory(None), options);
        let error = session.outcome().await.unwrap_err();
        assert!(matches!(error, TransferError::Defect(_)), "{name}: {error}");
        writer.join().unwrap();
        *ended.entry(TransferEnding::Defect).or_insert(0) += 1;
        let statistics = listener.statistics();
        assert_eq!((statistics.received.live, &statistics.received.ended), (0, &ended), "{name}");
        let raised: Vec<_> =
            statistics.defects.all().zip(before).filter(|((_, now), (_, before))| now != before).collect();
        assert_eq!(raised.len(), 1, "{name}");
        assert!(name.split(' ').any(|name| name == raised[0].0.0.name()), "{name}: {raised:?}");
    }
    // What is whole, and no packet.
    let writer = legacy::dial_and_write(listener.local_addr(), legacy::amst16_streams(&data, 65_536, 2));
    let Incoming::V1(arrival) = next(&mut listener).await else { panic!("not version 1") };
    let options = ReceiveOptions { tally: listener.tally(), ..options() };
    let error = arrival.take(blank(), Form::Memory(None), options).outcome().await.unwrap_err();
    assert!(matches!(error, TransferError::Content(_)), "{error}");
    writer.join().unwrap();
    ended.insert(TransferEnding::Content, 1);
    assert_eq!(listener.statistics().received.ended, ended);
    take_legacy(&mut listener, &data).await;
}
