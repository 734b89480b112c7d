//! Hand-overs that nobody asked for, out of turn, too often, or of lanes that are not there; and messages that lie.

use dwcp_core::RegionId;
use dwcp_core::extent::FlatPage;
use dwcp_core::message::{MessageCodec, message_digest};
use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::wire::*;
use dwcp_hde::{Bases, Effort};
use dwcp_v1_compat::Amst16;
use dwcp_v1_compat::wire::Tier;

use crate::attacker::{block_of, digest_of, offer};
use crate::oracle::{Inside, oracle};

/// A node that can carry messages.
fn both() -> SinkConfig {
    SinkConfig { messages: true, ..SinkConfig::default() }
}

/// To messages, in the epoch after the offer's, of no lane.
fn fence() -> Fence {
    let Offer { transfer, epoch, .. } = offer();
    Fence { transfer, epoch: FenceEpoch(epoch.0 + 1), framing: Framing::Messages, restart: false, lanes: Vec::new() }
}

/// A lane id that is neither in use nor was.
const NEXT: LaneId = LaneId(60_000);

async fn said(expected: Offence, frames: impl Fn(&mut Inside) -> Vec<Fence>) {
    oracle(both(), expected, async |inside: &mut Inside| {
        for fence in frames(inside) {
            inside.control.say(&Frame::Fence(fence)).await;
        }
    })
    .await;
}

// spec: V-3
#[tokio::test]
async fn b20_a_hand_over_of_an_older_epoch() {
    said(Offence::OutOfPlace, |inside| {
        let newest = offer().epoch.0;
        vec![Fence { epoch: FenceEpoch(inside.chance.below(newest + 1)), framing: Framing::Messages, ..fence() }]
    })
    .await;
}

// spec: V-3
#[tokio::test]
async fn b20_a_hand_over_that_shuts_everybody_else_out() {
    said(Offence::OutOfPlace, |inside| {
        let far = offer().epoch.0 + (1 << 20) + inside.chance.between(1, 1 << 40);
        vec![Fence { epoch: FenceEpoch(far), ..fence() }]
    })
    .await;
}

// spec: V-3
#[tokio::test]
async fn b20_a_hand_over_of_another_transfer() {
    said(Offence::OutOfPlace, |inside| vec![Fence { transfer: TransferId(inside.chance.bytes()), ..fence() }]).await;
}

// spec: V-3
#[tokio::test]
async fn b23_a_lane_that_ends_twice_or_never_joined_or_goes_on_as_itself() {
    said(Offence::OutOfPlace, |inside| {
        let sound = FencedLane { lane: inside.lane_id, end: inside.seq, next: NEXT };
        let lanes = match inside.chance.below(3) {
            0 => vec![sound, FencedLane { next: LaneId(NEXT.0 + 1), ..sound }],
            1 => vec![FencedLane { lane: LaneId(NEXT.0 + 1), ..sound }],
            _ => vec![FencedLane { next: sound.lane, ..sound }],
        };
        vec![Fence { lanes, ..fence() }]
    })
    .await;
}

// spec: V-3
#[tokio::test]
async fn b29_a_flood_of_hand_overs() {
    oracle(both(), Offence::Flood, async |inside: &mut Inside| {
        let first = offer().epoch.0 + 1;
        for number in 0..200 {
            let framing = if number % 2 == 0 { Framing::Messages } else { Framing::Extents };
            let fence = Fence { epoch: FenceEpoch(first + number), framing, ..fence() };
            inside.control.say(&Frame::Fence(fence)).await;
            if inside.control.hear_until(is_handover).await.is_none() {
                return;
            }
        }
        panic!("200 hand-overs as fast as they are answered");
    })
    .await;
}

/// The lane's connection carries messages from now on.
async fn handed_over(inside: &mut Inside) {
    // What was skipped before ends here: behind the last extent everything is a message.
    let zeros = vec![0; 4096];
    let block = block_of(&zeros, Effort::Fast, &Bases::none());
    inside.extent(0, 1, digest_of(1, 0, &zeros), &block).await;
    let lanes = vec![FencedLane { lane: inside.lane_id, end: inside.seq, next: NEXT }];
    inside.control.say(&Frame::Fence(Fence { lanes, ..fence() })).await;
    let Some(Frame::Handover(handover)) = inside.control.hear_until(is_handover).await else { panic!("no HANDOVER") };
    assert!(handover.lanes.iter().all(|lane| lane.credit > 0), "{handover:?}");
}

fn is_handover(frame: &Frame) -> bool {
    matches!(frame, Frame::Handover(_))
}

/// One page of ones for page `at`, as version 1 packs it.
fn page_of_ones(at: FlatPage) -> (Message, Vec<u8>) {
    let codec = Amst16 { tier: Tier::Local };
    let page = vec![1; 4096];
    let (mut blocks, mut wire) = (Vec::new(), Vec::new());
    codec.block(at, &page, &mut blocks).unwrap();
    codec.wrap(&blocks, &mut wire).unwrap();
    let leaf = Digest(*blake3::hash(&page).as_bytes());
    let digest = message_digest(fence().epoch, NEXT, 0, [(at, &leaf)].into_iter());
    let bytes = u32::try_from(wire.len()).unwrap();
    (Message { lane: NEXT, first: 0, extents: 1, pages: 1, bytes, digest }, wire)
}

async fn messages(expected: Offence, spoil: impl Fn(&mut Inside, &mut Message, &mut Vec<u8>)) {
    oracle(both(), expected, async |inside: &mut Inside| {
        handed_over(inside).await;
        let at = inside.chance.place(1, crate::attacker::PAGES);
        let at = offer().layout.flat(RegionId(0), at).unwrap();
        let (mut message, mut wire) = page_of_ones(at);
        spoil(inside, &mut message, &mut wire);
        inside.control.say(&Frame::Message(message)).await;
        inside.lane.bytes(&wire).await;
    })
    .await;
}

// spec: V-6
#[tokio::test]
async fn b01_a_message_whose_digest_is_of_something_else() {
    messages(Offence::ExtentDigest, |inside, message, _| {
        let bit = inside.chance.below(256) as usize;
        message.digest.0[bit / 8] ^= 1 << (bit % 8);
    })
    .await;
}

// spec: V-6
#[tokio::test]
async fn b07_a_message_of_bytes_that_are_none() {
    messages(Offence::BadBlock, |inside, _, wire| {
        for byte in wire.iter_mut() {
            *byte = inside.chance.bytes::<1>()[0] | 0x80;
        }
    })
    .await;
}

// spec: V-6
#[tokio::test]
async fn b03_a_message_for_a_page_beyond_the_guest() {
    messages(Offence::BadBlock, |inside, message, wire| {
        let far = offer().layout.flat_pages() + inside.chance.number() % 1_000_000;
        (*message, *wire) = page_of_ones(FlatPage(far));
    })
    .await;
}

// spec: V-6
#[tokio::test]
async fn b13_a_message_of_more_bytes_than_one_may_have() {
    messages(Offence::Malformed, |inside, message, wire| {
        message.bytes = limits::MAX_MESSAGE_BYTES + inside.chance.between(1, 1 << 20) as u32;
        wire.clear();
    })
    .await;
}

// spec: V-6
#[tokio::test]
async fn b04_a_message_out_of_its_turn() {
    messages(Offence::BadExtent, |inside, message, wire| {
        message.first = inside.chance.between(1, 1000);
        wire.clear();
    })
    .await;
}
