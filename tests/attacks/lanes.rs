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
use crate::oracle::{Field, join, oracle, refused_for_now, untouched};

#[tokio::test]
async fn b13_more_bytes_than_were_granted() {
    let config = SinkConfig { lane_window: 1, ..SinkConfig::default() };
    oracle(config, Offence::OverCredit, async |inside| {
        // Frames that are charged but never applied: optional frames of a later version.
        let body = u32::try_from(limits::MAX_CONTROL_BYTES).unwrap();
        let mut frame = [&body.to_le_bytes()[..], &[0x99, 0, 0, 0]].concat();
        frame.resize(8 + limits::MAX_CONTROL_BYTES, 0);
        for _ in 0..=inside.credit / frame.len() as u64 {
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
    let length = u32::try_from(limits::MAX_EXTENT_BYTES + 1).unwrap();
    let header = FrameHeader::new(FrameType::Extent, length).encode();
    oracle(SinkConfig::default(), Offence::Malformed, async |inside| inside.lane.bytes(&header).await).await;
}

/// Lanes that are opened and dropped are lost lanes: each uses up an id of 4096, and a turn of its identity.
#[tokio::test]
async fn b14_lanes_that_come_and_go() {
    let mut field = Field::new().await;
    let inside = field.inside().await;
    let mut joined = 0;
    for id in 2..200 {
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

/// All that 70 bytes can ask for, on four lanes without an end: pages of one byte, and an honest transfer beside it.
#[tokio::test]
async fn b14_lanes_that_work_without_an_end_leave_the_others_their_turns() {
    let mut field = Field::with(SinkConfig { lane_window: 1 << 40, ..SinkConfig::default() }).await;
    let mut inside = field.inside().await;
    let plain = vec![0xa5; PAGES as usize * 4096];
    let (digest, block) = (digest_of(1, 0, &plain), block_of(&plain, Effort::Fast, &Bases::none()));
    let mut lanes = Vec::new();
    for id in 2..=4 {
        let mut lane = field.connect().await;
        let joined = join(&mut lane, &inside.key, inside.session, LaneId(id)).await;
        assert!(matches!(joined, Frame::Joined(_)), "{joined:?}");
        lanes.push(lane);
    }
    lanes.push(inside.lane);
    let sent = Arc::new(AtomicU64::new(0));
    let mut floods = JoinSet::new();
    for mut lane in lanes {
        let (block, sent) = (block.clone(), Arc::clone(&sent));
        floods.spawn(async move {
            for seq in 0.. {
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
    let mut field = Field::new().await;
    let inside = field.inside().await;
    let mut lane = field.connect().await;
    // The right session, a proof with the key of this connection instead of the session's.
    let key = lane.key(dwcp_core::session::binding::SESSION_LABEL);
    let Frame::Error(error) = join(&mut lane, &key, inside.session, LaneId(2)).await else { panic!() };
    assert_eq!(error.code, ErrorCode::JoinRejected);
    assert_eq!(field.charged().into_iter().collect::<Vec<_>>(), [(Offence::BadProof, 1)]);
    refused_for_now(&field).await;
    untouched(&inside.guest);
    field.honest_comes_through().await;
}

// spec: L-2
#[tokio::test]
async fn b23_a_lane_id_twice() {
    let mut field = Field::new().await;
    let inside = field.inside().await;
    let mut lane = field.connect().await;
    let Frame::Error(error) = join(&mut lane, &inside.key, inside.session, LaneId(1)).await else { panic!() };
    assert_eq!(error.code, ErrorCode::JoinRejected);
    assert_eq!(field.charged().into_iter().collect::<Vec<_>>(), [(Offence::BadProof, 1)]);
    refused_for_now(&field).await;
    untouched(&inside.guest);
    field.honest_comes_through().await;
}

#[tokio::test]
async fn b29_a_control_frame_on_a_bulk_lane() {
    let mut frame = Vec::new();
    Frame::Ping(Ping { id: 1 }).encode(&mut frame);
    oracle(SinkConfig::default(), Offence::OutOfPlace, async |inside| inside.lane.bytes(&frame).await).await;
}

/// The attacks prove something: an extent that is sound is applied.
#[tokio::test]
async fn a_sound_extent_is_applied() {
    let mut field = Field::new().await;
    let mut inside = field.inside().await;
    inside.lane.bytes(&extent(0, 1, 3, false)).await;
    let Frame::Ack(ack) = inside.control.hear().await.unwrap() else { panic!() };
    assert_eq!(ack.lanes, [(LaneId(1), 1)]);
    assert_eq!(inside.guest.peek(dwcp_core::RegionId(0), 3 * 4096), Some(0xa5a5_a5a5_a5a5_a5a5));
    assert!(field.charged().is_empty());
    field.honest_comes_through().await;
}
