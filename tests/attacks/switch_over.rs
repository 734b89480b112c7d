//! Words of the switch-over at the wrong time, or with the wrong root; and too many words.

use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::session::leaves::{Leaves, Tree};
use dwcp_core::wire::*;
use tokio::io::AsyncWriteExt;

use crate::attacker::offer;
use crate::oracle::{Inside, oracle};

fn pause(attempt: u32, root: Digest) -> Pause {
    let device_digest = Digest(*blake3::hash(&[]).as_bytes());
    Pause { attempt, root, device_bytes: 0, device_digest, finals: vec![] }
}

fn root_of_zeros() -> Digest {
    let layout = offer().layout;
    Tree::new(&layout).root(&Leaves::new(&layout))
}

async fn said(expected: Offence, frames: &[Frame]) {
    oracle(SinkConfig::default(), expected, async |inside: &mut Inside| {
        for frame in frames {
            inside.control.say(frame).await;
        }
    })
    .await;
}

fn run(root: Digest) -> Frame {
    let Offer { transfer, epoch, .. } = offer();
    Frame::Run(Run { transfer, epoch, attempt: 1, root })
}

#[tokio::test]
async fn b05_a_root_that_is_not_the_guests() {
    said(Offence::RootMismatch, &[Frame::Pause(pause(1, Digest([7; 32])))]).await;
}

#[tokio::test]
async fn b05_the_end_before_all_extents_came() {
    let missing = Pause { finals: vec![(LaneId(1), 5)], ..pause(1, root_of_zeros()) };
    said(Offence::OutOfPlace, &[Frame::Pause(missing), run(root_of_zeros())]).await;
}

#[tokio::test]
async fn b05_a_device_state_with_another_digest() {
    let devices = Pause { device_bytes: 3, device_digest: Digest([1; 32]), ..pause(1, root_of_zeros()) };
    let state = DeviceState { attempt: 1, offset: 0, bytes: b"abc".to_vec().into() };
    said(Offence::DeviceDigest, &[Frame::Pause(devices), Frame::DeviceState(state)]).await;
}

#[tokio::test]
async fn b06_run_without_anything() {
    said(Offence::OutOfPlace, &[run(root_of_zeros())]).await;
}

#[tokio::test]
async fn b06_a_pause_twice() {
    let waiting = Pause { finals: vec![(LaneId(1), 5)], ..pause(1, root_of_zeros()) };
    said(Offence::OutOfPlace, &[Frame::Pause(waiting.clone()), Frame::Pause(waiting)]).await;
}

#[tokio::test]
async fn b06_device_state_of_no_pause() {
    let state = DeviceState { attempt: 1, offset: 0, bytes: b"abc".to_vec().into() };
    said(Offence::OutOfPlace, &[Frame::DeviceState(state)]).await;
}

#[tokio::test]
async fn b06_words_that_only_a_sink_says() {
    said(Offence::OutOfPlace, &[Frame::Credit(Credit { lane: LaneId(1), total: u64::MAX })]).await;
}

/// What a sink remembers of lanes is bounded.
#[tokio::test]
async fn b30_burials_of_lanes_that_never_were() {
    oracle(SinkConfig::default(), Offence::OutOfPlace, async |inside: &mut Inside| {
        let mut all = Vec::new();
        for id in 1..=limits::MAX_LANE_IDS + 1 {
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
        for id in 0..12_000 {
            if bytes.is_empty() { frame(id).encode(&mut all) } else { all.extend_from_slice(bytes) }
        }
        // What comes after the violation is not read any more.
        let _ = inside.control.stream.write_all(&all).await;
        let _ = inside.control.stream.flush().await;
    })
    .await;
}
