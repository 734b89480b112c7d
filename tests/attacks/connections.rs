//! Connections that say nothing, too little, or nothing sensible.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use dwcp_core::guest::Memory;
use dwcp_core::net::{Endpoint, Identity, Incoming, Offence, Transfer, Trust, TurnedAway};
use dwcp_core::session::{Owner, SinkConfig, SourceConfig};
use dwcp_core::wire::*;
use dwcp_core::{Layout, RegionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::attacker::{Raw, hello, offer};
use crate::oracle::{Field, refused_for_now};
use crate::seeds::{Chance, seeds};

/// Silent, with the begin of a TLS record, and authenticated but silent.
// spec: H-9
#[tokio::test]
async fn b16_slow_connections_are_cut_and_charged_to_nobody() {
    let field = Field::new().await;
    let mut held = Vec::new();
    let mut chance = Chance::new(1);
    for _ in 0..60 {
        let mut socket = TcpStream::connect(field.address).await.unwrap();
        // The begin of a ClientHello of 512 bytes, none of it or nearly all.
        let mut begin = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        begin.resize(500, 0);
        begin.truncate(if chance.percent(50) { 0 } else { chance.magnitude(1, 500) as usize });
        socket.write_all(&begin).await.unwrap();
        held.push(socket);
    }
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(field.connect().await);
    }
    for mut socket in held {
        assert!(!matches!(socket.read(&mut [0; 64]).await, Ok(1..)), "cut");
    }
    for mut raw in silent {
        assert!(raw.hear().await.is_err(), "cut");
    }
    let found = field.node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::TimedOut, 70)])));
    assert!(!field.quarantined());
    field.honest_comes_through().await;
}

// spec: H-10
#[tokio::test]
async fn b16_an_address_has_no_more_than_its_half_open_connections() {
    let field = Field::new().await;
    let mut held = Vec::new();
    for _ in 0..most_of_an_address() {
        held.push(TcpStream::connect(field.address).await.unwrap());
    }
    let mut over = TcpStream::connect(field.address).await.unwrap();
    assert!(!matches!(over.read(&mut [0; 64]).await, Ok(1..)), "hung up on at once");
    assert_eq!(field.node.offences().turned_away, BTreeMap::from([(TurnedAway::OverAddressLimit, 1)]));
    drop(held);
    field.honest_comes_through().await;
}

/// All that an honest source said on a connection, said again by somebody else.
#[tokio::test]
async fn b21_a_whole_connection_replayed() {
    let mut field = Field::new().await;
    let tap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (through, node) = (tap.local_addr().unwrap(), field.address);
    let recording = tokio::spawn(async move {
        let (near, far) = (tap.accept().await.unwrap().0, TcpStream::connect(node).await.unwrap());
        let ((mut from, mut back), (mut answers, mut to)) = (near.into_split(), far.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
        let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            said.extend_from_slice(&bytes[..count]);
            to.write_all(&bytes[..count]).await.unwrap();
        }
        said
    });
    let mut control = Raw::connect(through, Some(&field.attacker), b"dwcp/3").await.unwrap();
    let (ack, hello) = control.hello(|_| {}).await;
    control.bind(&hello, &ack).await;
    control.say(&Frame::Offer(offer())).await;
    let session = field.accepted().await;
    drop(control);
    let said = recording.await.unwrap();
    assert!(said.len() > 500, "{} bytes", said.len());
    drop(session);

    let mut replay = TcpStream::connect(field.address).await.unwrap();
    let _ = replay.write_all(&said).await;
    let mut answer = Vec::new();
    let _ = replay.read_to_end(&mut answer).await;
    let found = field.node.offences();
    assert_eq!((found.charged.len(), found.turned_away), (0, BTreeMap::from([(TurnedAway::NotAuthenticated, 1)])));
    assert!(!field.quarantined());
    field.honest_comes_through().await;
}

/// An eighth of half of the descriptors, 128 to 1024.
fn most_of_an_address() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let descriptors = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    ((descriptors / 2).min(8192) / 8).max(128)
}

#[tokio::test]
async fn b24_an_offer_changed_on_the_way() {
    for mut chance in seeds() {
        let field = Field::new().await;
        let mut control = field.connect().await;
        let (ack, mut hello) = control.hello(|_| {}).await;
        match chance.below(3) {
            0 => hello.nonce = chance.bytes(),
            1 => hello.features ^= 1 << chance.below(16),
            _ => hello.limits.lanes += 1,
        }
        control.bind(&hello, &ack).await;
        assert_eq!(control.hear_error().await.code, ErrorCode::Negotiation);
        charged_once(field, Offence::BadProof).await;
    }
}

#[tokio::test]
async fn b26_a_hello_of_a_mebibyte() {
    for mut chance in seeds() {
        let field = Field::new().await;
        let mut control = field.connect().await;
        let length = chance.magnitude(limits::MAX_HANDSHAKE_BYTES as u64 + 1, 1 << 24) as u32;
        control.bytes(&FrameHeader::new(FrameType::Hello, length).encode()).await;
        assert_eq!(control.hear_error().await.code, ErrorCode::Malformed);
        assert_eq!(field.charged(), BTreeMap::from([(Offence::Malformed, 1)]));
        assert!(!field.quarantined(), "the first time");
        field.honest_comes_through().await;
    }
}

#[tokio::test]
async fn b22_a_session_claimed_without_its_key() {
    for chance in seeds() {
        let mut field = Field::new().await;
        let mut inside = field.inside(chance).await;
        let mut control = field.connect().await;
        let (attempt, mac) = (inside.chance.number(), Digest(inside.chance.bytes()));
        let claim = ResumeClaim { session: inside.session, attempt, mac };
        control.say(&Frame::Hello(Hello { resume: Some(claim), ..hello() })).await;
        assert_eq!(control.hear_error().await.code, ErrorCode::Unknown, "told as if it were not known");
        charged_once(field, Offence::BadProof).await;
    }
}

async fn charged_once(field: Field, expected: Offence) {
    assert_eq!(field.charged(), BTreeMap::from([(expected, 1)]));
    refused_for_now(&field).await;
    assert_eq!(field.charged(), BTreeMap::from([(expected, 1)]));
    field.honest_comes_through().await;
}

/// In a process of its own, with few descriptors.
#[test]
fn a_node_without_descriptors_lives_on() {
    with_descriptors(64, "connections::without_descriptors");
}

/// Runs an ignored test of this binary in a process of its own, which may have so many descriptors.
pub(crate) fn with_descriptors(descriptors: u32, test: &str) {
    let itself = std::env::current_exe().unwrap();
    let script = format!("ulimit -n {descriptors} && exec \"$0\" --exact {test} --ignored --nocapture");
    let output = Command::new("sh").args(["-c", &script]).arg(itself).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The end of a connection is heard before its descriptor is closed, and threads that begin read files. One that is given back
/// after all were taken would let a caller in.
async fn until_nothing_is_given_back() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (mut least, mut looks) = (usize::MAX, 0);
    while looks < 2000 {
        looks = if open() < least { 0 } else { looks + 1 };
        least = least.min(open());
        tokio::task::yield_now().await;
    }
}

#[test]
#[ignore = "uses up the descriptors of its process: started by the test above"]
fn without_descriptors() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (own, peer) = (Identity::generate("node").unwrap(), Identity::generate("peer").unwrap());
        let node = Endpoint::new(&own, &Trust::fingerprints([peer.fingerprint()])).unwrap();
        let mut listener = node.listen("127.0.0.1:0").await.unwrap();
        let source = Endpoint::new(&peer, &Trust::fingerprints([own.fingerprint()])).unwrap();
        // Who has taken a connection waits for the next: a first look without a descriptor would open and close the reserve,
        // and what is taken meanwhile would be the reserve.
        let mut first = TcpStream::connect(listener.local_addr()).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = first.read_to_end(&mut Vec::new()).await;
        drop(first);
        until_nothing_is_given_back().await;
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        // One for a caller, none for whoever accepts it.
        taken.pop();
        for _ in 0..20 {
            let mut caller = TcpStream::connect(listener.local_addr()).await.unwrap();
            assert!(!matches!(caller.read(&mut [0; 64]).await, Ok(1..)), "hung up on");
        }
        assert_eq!(
            node.offences().turned_away,
            BTreeMap::from([(TurnedAway::NotAuthenticated, 1), (TurnedAway::NoDescriptor, 20)])
        );
        drop(taken);
        let guest = Arc::new(Memory::new(Layout::new(&[1 << 20]).unwrap()));
        guest.poke(RegionId(0), 4096, 42);
        let transfer = Transfer::new(Name::new("vm").unwrap(), GuestKind::Image);
        let to = listener.local_addr().to_string();
        let sending = async {
            source.send(&to, transfer, Arc::clone(&guest) as _, SourceConfig::default()).await.unwrap().outcome().await
        };
        let taking = async {
            let Some(Incoming::Offer(incoming)) = listener.accept().await else { panic!() };
            let arrived = Arc::new(Memory::new(incoming.offer().layout.clone()));
            incoming.accept(Arc::clone(&arrived) as _, SinkConfig::default()).outcome().await;
            arrived.peek(RegionId(0), 4096)
        };
        let (outcome, word) = tokio::join!(sending, taking);
        assert!(outcome.owner == Owner::Sink && outcome.error.is_none(), "{outcome:?}");
        assert_eq!(word, Some(42));
    });
}
