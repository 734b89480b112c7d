//! Lanes that carry too much, or come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_core::net::Offence;
use dwcp_core::session::SinkConfig;
use dwcp_core::wire::*;
use dwcp_hde::{Bases, Effort};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::attacker::{PAGES, block_of, digest_of, extent, extent_with};
use crate::oracle::{Field, Inside, join, oracle, refused_for_now, untouched};
use crate::seeds::{Chance, seeds};

#[tokio::test]
async fn b13_more_bytes_than_were_granted() {
    let config = SinkConfig { lane_window: 1, ..SinkConfig::default() };
    oracle(config, Offence::OverCredit, async |inside: &mut Inside| {
        // Frames that are charged but never applied: optional frames of a later version.
        let body = inside.chance.between(1000, limits::MAX_CONTROL_BYTES as u64) as u32;
        let mut frame = [&body.to_le_bytes()[..], &[0x99, 0, 0, 0]].concat();
        frame.resize(8 + body as usize, 0);
        // What the lane carried before may have been granted again.
        for _ in 0..=(inside.credit + 100_000) / frame.len() as u64 {
            if inside.lane.stream.write_all(&frame).await.is_err() {
                break;
            }
        }
        let _ = inside.lane.stream.flush().await;
    })
    .await;
}

#[tokio::test]
async fn b13_one_byte_more_than_a_frame_may_have() {
    oracle(SinkConfig::default(), Offence::Malformed, async |inside: &mut Inside| {
        let most = limits::MAX_EXTENT_BYTES as u64;
        let length = most + inside.chance.pick(&[1, 2, u64::from(u32::MAX) - most]);
        let header = FrameHeader::new(FrameType::Extent, u32::try_from(length).unwrap()).encode();
        inside.lane.bytes(&header).await;
    })
    .await;
}

/// Lanes that are opened and dropped are lost lanes: each uses up an id of 4096, and a turn of its identity.
#[tokio::test]
async fn b14_lanes_that_come_and_go() {
    let mut field = Field::new().await;
    let inside = field.inside(Chance::new(1)).await;
    let mut joined = 0;
    for id in inside.lane_id.0 + 1..inside.lane_id.0 + 200 {
        let mut lane = field.connect().await;
        match join(&mut lane, &inside.key, inside.session, LaneId(id)).await {
            Frame::Joined(_) => joined += 1,
            // Those before it have not been found dead yet.
            Frame::Error(error) => assert_eq!(error.code, ErrorCode::JoinRejected),
            other => panic!("{other:?}"),
        }
    }
    assert!(joined > 16, "more than may be open at a time");
    assert!(field.charged().is_empty() && !field.quarantined(), "an honest peer on a bad link does that");
    untouched(&inside.guest);
    field.honest_comes_through().await;
}

/// All that 70 bytes can ask for, on every lane and without an end: pages of one byte, beside an honest transfer.
#[tokio::test]
async fn b14_lanes_that_work_without_an_end_leave_the_others_their_turns() {
    let mut field = Field::with(SinkConfig { lane_window: 1 << 40, ..SinkConfig::default() }).await;
    let mut inside = field.inside(Chance::new(1)).await;
    let plain = vec![0xa5; PAGES as usize * 4096];
    let (digest, block) = (digest_of(1, 0, &plain), block_of(&plain, Effort::Fast, &Bases::none()));
    let mut lanes = vec![(inside.lane, inside.seq)];
    // As many as it may have.
    for id in inside.lane_id.0 + 1.. {
        let mut lane = field.connect().await;
        let Frame::Joined(_) = join(&mut lane, &inside.key, inside.session, LaneId(id)).await else { break };
        lanes.push((lane, 0));
    }
    assert!(lanes.len() > 1, "at most four, of which one to three were there");
    let sent = Arc::new(AtomicU64::new(0));
    let mut floods = JoinSet::new();
    for (mut lane, first) in lanes {
        let (block, sent) = (block.clone(), Arc::clone(&sent));
        floods.spawn(async move {
            for seq in first.. {
                let frame = extent_with(seq, 1, 0, PAGES as usize, digest, &block);
                lane.stream.write_all(&frame).await.expect("nothing of it is forbidden");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // What the node says meanwhile is heard, as by an honest source.
    floods.spawn(async move { while !matches!(inside.control.hear().await, Ok(Frame::Error(_)) | Err(_)) {} });
    assert!(field.charged().is_empty());
    field.honest_comes_through().await;
    assert!(sent.load(Ordering::Relaxed) > 1000, "{sent:?} extents are no flood");
    floods.shutdown().await;
}

#[tokio::test]
async fn b23_a_lane_of_another_session() {
    refused(async |field, inside| {
        let mut lane = field.connect().await;
        // The right session, a proof with the key of this connection instead of the session's.
        let key = lane.key(dwcp_core::session::binding::SESSION_LABEL);
        let id = LaneId(u16::try_from(inside.chance.between(1, 65_535)).unwrap());
        join(&mut lane, &key, inside.session, id).await
    })
    .await;
}

// spec: L-2
#[tokio::test]
async fn b23_a_lane_id_twice() {
    refused(async |field, inside| {
        let mut lane = field.connect().await;
        join(&mut lane, &inside.key, inside.session, inside.lane_id).await
    })
    .await;
}

/// A lane that may not join, with each seed: it is an offence, and the session goes on without it.
async fn refused(joins: impl AsyncFn(&Field, &mut Inside) -> Frame) {
    for chance in seeds() {
        let mut field = Field::new().await;
        let mut inside = field.inside(chance).await;
        let Frame::Error(error) = joins(&field, &mut inside).await else { panic!() };
        assert_eq!(error.code, ErrorCode::JoinRejected);
        assert_eq!(field.charged().into_iter().collect::<Vec<_>>(), [(Offence::BadProof, 1)]);
        refused_for_now(&field).await;
        untouched(&inside.guest);
        field.honest_comes_through().await;
    }
}

#[tokio::test]
async fn b29_a_control_frame_on_a_bulk_lane() {
    oracle(SinkConfig::default(), Offence::OutOfPlace, async |inside: &mut Inside| {
        let (id, lane) = (inside.chance.word(), inside.lane_id);
        let frames = [Frame::Ping(Ping { id }), Frame::Bury(Bury { lane }), Frame::Offer(crate::attacker::offer())];
        inside.lane.say(&frames[inside.chance.below(3) as usize]).await;
    })
    .await;
}

/// The attacks prove something: an extent that is sound is applied.
#[tokio::test]
async fn a_sound_extent_is_applied() {
    let mut field = Field::new().await;
    let mut inside = field.inside(Chance::new(1)).await;
    inside.lane.bytes(&extent(inside.seq, 1, 3, false)).await;
    let applied = (inside.lane_id, inside.seq + 1);
    while !matches!(inside.control.hear().await.unwrap(), Frame::Ack(ack) if ack.lanes == [applied]) {}
    assert_eq!(inside.guest.peek(dwcp_core::RegionId(0), 3 * 4096), Some(0xa5a5_a5a5_a5a5_a5a5));
    assert!(field.charged().is_empty());
    field.honest_comes_through().await;
}
