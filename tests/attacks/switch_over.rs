//! Words of the switch-over at the wrong time, or with the wrong root; and too many words.

use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::session::leaves::{Leaves, Tree};
use dwcp_core::wire::*;
use tokio::io::AsyncWriteExt;

use crate::attacker::offer;
use crate::oracle::{Inside, oracle};
use crate::seeds::Chance;

/// A pause of the guest as it is at the node, to be spoiled.
fn pause(inside: &mut Inside) -> Pause {
    let device_digest = Digest(*blake3::hash(&[]).as_bytes());
    let attempt = inside.chance.number().max(1);
    Pause { attempt, root: root_of_zeros(), device_bytes: 0, device_digest, finals: inside.finals() }
}

/// A pause whose extents have not all come.
fn early(inside: &mut Inside) -> Pause {
    let missing = inside.seq + inside.chance.between(1, 1000);
    Pause { finals: vec![(inside.lane_id, missing)], ..pause(inside) }
}

fn root_of_zeros() -> Digest {
    let layout = offer().layout;
    Tree::new(&layout).root(&Leaves::new(&layout))
}

async fn said(expected: Offence, frames: impl Fn(&mut Inside) -> Vec<Frame>) {
    oracle(SinkConfig::default(), expected, async |inside: &mut Inside| {
        for frame in frames(inside) {
            inside.control.say(&frame).await;
        }
    })
    .await;
}

fn run(attempt: u32, root: Digest) -> Frame {
    let Offer { transfer, epoch, .. } = offer();
    Frame::Run(Run { transfer, epoch, attempt, root })
}

/// Some of a device state.
fn devices(chance: &mut Chance) -> Vec<u8> {
    (0..chance.between(1, 100)).map(|_| chance.bytes::<1>()[0]).collect()
}

#[tokio::test]
async fn b05_a_root_that_is_not_the_guests() {
    said(Offence::RootMismatch, |inside| {
        let root = Digest(inside.chance.bytes());
        vec![Frame::Pause(Pause { root, ..pause(inside) })]
    })
    .await;
}

#[tokio::test]
async fn b05_the_end_before_all_extents_came() {
    said(Offence::OutOfPlace, |inside| {
        let missing = early(inside);
        let run = run(missing.attempt, missing.root);
        vec![Frame::Pause(missing), run]
    })
    .await;
}

#[tokio::test]
async fn b05_a_device_state_with_another_digest() {
    said(Offence::DeviceDigest, |inside| {
        let bytes = devices(&mut inside.chance);
        let (device_bytes, device_digest) = (bytes.len() as u64, Digest(inside.chance.bytes()));
        let devices = Pause { device_bytes, device_digest, ..pause(inside) };
        let state = DeviceState { attempt: devices.attempt, offset: 0, bytes: bytes.into() };
        vec![Frame::Pause(devices), Frame::DeviceState(state)]
    })
    .await;
}

#[tokio::test]
async fn b06_run_without_anything() {
    said(Offence::OutOfPlace, |inside| vec![run(inside.chance.number(), root_of_zeros())]).await;
}

#[tokio::test]
async fn b06_a_pause_twice() {
    said(Offence::OutOfPlace, |inside| vec![Frame::Pause(early(inside)); 2]).await;
}

#[tokio::test]
async fn b06_device_state_of_no_pause() {
    said(Offence::OutOfPlace, |inside| {
        let (attempt, bytes) = (inside.chance.number(), devices(&mut inside.chance).into());
        vec![Frame::DeviceState(DeviceState { attempt, offset: 0, bytes })]
    })
    .await;
}

#[tokio::test]
async fn b06_words_that_only_a_sink_says() {
    said(Offence::OutOfPlace, |inside| {
        let (lane, total) = (inside.lane_id, inside.chance.word());
        let Offer { transfer, epoch, .. } = offer();
        let words = [
            Frame::Credit(Credit { lane, total }),
            Frame::Ack(Ack { durable: 0, lanes: vec![(lane, inside.seq)] }),
            Frame::Accept(Accept { transfer, dictionaries: 0, baseline: None }),
            Frame::Running(Running { transfer, epoch }),
        ];
        vec![words[inside.chance.below(4) as usize].clone()]
    })
    .await;
}

/// What a sink remembers of lanes is bounded.
#[tokio::test]
async fn b30_burials_of_lanes_that_never_were() {
    oracle(SinkConfig::default(), Offence::OutOfPlace, async |inside: &mut Inside| {
        let mut all = Vec::new();
        // One more than there may be, from any id on, past those that have joined.
        let first = u16::try_from(inside.chance.between(1, 60_000)).unwrap();
        for id in first..=first + limits::MAX_LANE_IDS {
            Frame::Bury(Bury { lane: LaneId(id) }).encode(&mut all);
        }
        let _ = inside.control.stream.write_all(&all).await;
        let _ = inside.control.stream.flush().await;
    })
    .await;
}

// spec: F-1
#[tokio::test]
async fn b29_a_flood_of_questions() {
    flood(|id| Frame::Ping(Ping { id }), &[]).await;
}

// spec: F-1, W-7
#[tokio::test]
async fn b29_a_flood_of_frames_that_are_skipped() {
    flood(|_| Frame::Ping(Ping { id: 0 }), &[0, 0, 0, 0, 0x99, 0, 0, 0]).await;
}

/// Of frames, or of these bytes if there are any.
async fn flood(frame: impl Fn(u64) -> Frame, bytes: &[u8]) {
    oracle(SinkConfig::default(), Offence::Flood, async |inside: &mut Inside| {
        let mut all = Vec::new();
        for id in 0..12_000 + inside.chance.below(8000) {
            if bytes.is_empty() { frame(id).encode(&mut all) } else { all.extend_from_slice(bytes) }
        }
        // What comes after the violation is not read any more.
        let _ = inside.control.stream.write_all(&all).await;
        let _ = inside.control.stream.flush().await;
    })
    .await;
}
