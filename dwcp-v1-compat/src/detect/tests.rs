use std::net::IpAddr;
use std::time::Duration;

use dwcp_core::session::Time;

use super::*;
use crate::message::ConnectionId;
use crate::wire::Framing;

fn at(seconds: u64) -> Time {
    Time::after_epoch(Duration::from_secs(seconds))
}

fn peer(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

const fn id(connection: u32) -> ConnectionId {
    ConnectionId(connection)
}

fn sight(framing: Framing, bytes: &[u8]) -> Vec<Sight> {
    let mut opening = Opening::new(framing);
    bytes.iter().map(|byte| opening.feed(*byte)).collect()
}

#[test]
fn openings_are_told_apart_a_byte_at_a_time() {
    let last = |framing, bytes: &[u8]| *sight(framing, bytes).last().unwrap();
    let hello = [0x16, 3, 1, 0, 200, 1, 0, 0];
    assert_eq!(sight(Framing::Mst8, &hello)[..6], [[Sight::More; 5].as_slice(), &[Sight::Tls]].concat());
    let mst8 = [0, 0, 0, 2, 0, 4, 0, 0];
    assert_eq!(sight(Framing::Mst8, &mst8), [[Sight::More; 7].as_slice(), &[Sight::V1 { first: false }]].concat());
    assert_eq!(last(Framing::Amst16, &mst8), Sight::More);
    let amst16 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0];
    assert_eq!(last(Framing::Amst16, &amst16), Sight::V1 { first: true });
    // The header of one with the lengths of the other: an mst8 chunk of no bytes.
    assert_eq!(last(Framing::Mst8, &amst16), Sight::Garbage);
    for garbage in [b"GET / HT".as_slice(), b"SSH-2.0-", &[0x40], &[2], &[0x16, 2], &[0x16, 3, 0], &[0xff]] {
        assert_eq!(last(Framing::Amst16, garbage), Sight::Garbage, "{garbage:02x?}");
    }
    let three_gib = [0, 0, 0, 0, 0xc0, 0, 0, 0];
    assert_eq!(last(Framing::Mst8, &three_gib), Sight::Garbage);
}

#[test]
fn a_verdict_stays_and_keeps_the_bytes_that_were_looked_at() {
    let mut opening = Opening::new(Framing::Mst8);
    for byte in [0, 0, 0, 2, 0, 4, 0, 0] {
        opening.feed(byte);
    }
    assert_eq!(opening.feed(0xff), Sight::V1 { first: false });
    assert_eq!((opening.sight(), opening.bytes()), (Sight::V1 { first: false }, [0, 0, 0, 2, 0, 4, 0, 0].as_slice()));
}

#[test]
fn silent_connections_of_a_transfer_are_held_to_its_end_and_others_have_a_deadline() {
    let mut groups = Groups::new(GroupsConfig::default());
    for connection in 0..3 {
        let standing = groups.accepted(at(0), id(connection), peer(1)).unwrap();
        assert_eq!(standing, Standing::Watched { until: at(5) });
    }
    groups.accepted(at(1), id(3), peer(2)).unwrap();
    let Route::Start(group) = groups.spoke(id(1), Sight::V1 { first: true }) else { panic!("no group") };
    // Opened later, and by another name of the same address.
    let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    assert_eq!(groups.accepted(at(2), id(4), mapped), Ok(Standing::Held(group)));
    assert_eq!(groups.spoke(id(4), Sight::V1 { first: true }), Route::Join(group));
    assert_eq!(groups.deadline(), Some(at(6)), "that of the other address");
    assert_eq!(groups.expired(at(6)), Some(id(3)));
    assert_eq!(groups.expired(at(1000)), None);
    assert_eq!(groups.ended(group), [id(0), id(2)]);
    assert_eq!((groups.load(), groups.deadline()), ((0, 0), None));
    let counts = groups.counts();
    assert_eq!((counts.started, counts.joined, counts.held, counts.silent), (1, 1, 3, 1));
}

#[test]
fn a_node_that_speaks_tls_goes_on_beside_a_transfer_of_its_address() {
    let mut groups = Groups::new(GroupsConfig::default());
    groups.accepted(at(0), id(0), peer(1)).unwrap();
    let Route::Start(group) = groups.spoke(id(0), Sight::V1 { first: true }) else { panic!("no group") };
    groups.accepted(at(0), id(1), peer(1)).unwrap();
    assert_eq!(groups.spoke(id(1), Sight::Tls), Route::Tls);
    groups.accepted(at(0), id(2), peer(1)).unwrap();
    assert_eq!(groups.spoke(id(2), Sight::Garbage), Route::Close(TurnedAway::Garbage));
    assert_eq!(groups.ended(group), []);
    assert_eq!((groups.counts().tls, groups.counts().garbage), (1, 1));
    assert_eq!(groups.spoke(id(2), Sight::V1 { first: true }), Route::Close(TurnedAway::Unknown));
    groups.accepted(at(9), id(3), peer(1)).unwrap();
    assert!(
        matches!(groups.spoke(id(3), Sight::V1 { first: true }), Route::Start(next) if next != group),
        "a new transfer"
    );
}

/// v1 dials its connections together, but some of them may be accepted when the first one has ended the transfer.
#[test]
fn what_comes_behind_a_transfer_that_failed_is_of_it_until_another_one_begins() {
    let mut groups = Groups::new(GroupsConfig { aftermath: Duration::from_secs(1), ..GroupsConfig::default() });
    let mut next = 0;
    let mut speak = |groups: &mut Groups, now, last, first| {
        next += 1;
        groups.accepted(now, id(next), peer(last)).unwrap();
        groups.spoke(id(next), Sight::V1 { first })
    };
    let Route::Start(group) = speak(&mut groups, at(9), 1, false) else { panic!("no group") };
    assert_eq!(groups.failed(at(9), group), []);
    // Its first chunk may be among these, and is none of another message.
    let soon = at(9) + Duration::from_millis(999);
    assert_eq!([true, false].map(|first| speak(&mut groups, soon, 1, first)), [Route::Rest; 2]);
    let Route::Start(other) = speak(&mut groups, soon, 2, true) else { panic!("another address") };
    let Route::Start(group) = speak(&mut groups, at(10), 1, true) else { panic!("the aftermath is over") };
    assert_eq!((groups.counts().started, groups.counts().joined), (3, 2));
    // The first chunk came: with the next one another message begins, and whatever comes then is of that.
    groups.failed(at(10), group);
    assert_eq!(speak(&mut groups, at(10), 1, false), Route::Rest);
    let Route::Start(group) = speak(&mut groups, at(10), 1, true) else { panic!("a peer that tries again") };
    assert_eq!(speak(&mut groups, at(10), 1, false), Route::Join(group));
    // Behind one that came whole nothing is to come.
    groups.ended(other);
    assert!(matches!(speak(&mut groups, at(10), 2, false), Route::Start(_)));
}

#[test]
fn what_speaks_behind_a_transfer_that_is_complete_is_the_next_one() {
    let mut groups = Groups::new(GroupsConfig::default());
    groups.accepted(at(0), id(0), peer(1)).unwrap();
    let Route::Start(first) = groups.spoke(id(0), Sight::V1 { first: true }) else { panic!("no group") };
    assert_eq!(groups.joined_from(peer(1)), Some(first));
    groups.complete(first);
    assert_eq!(groups.joined_from(peer(1)), None);
    assert_eq!(groups.accepted(at(0), id(1), peer(1)), Ok(Standing::Watched { until: at(5) }));
    let Route::Start(second) = groups.spoke(id(1), Sight::V1 { first: true }) else { panic!("no group") };
    assert_eq!(groups.accepted(at(0), id(2), peer(1)), Ok(Standing::Held(second)));
    assert_eq!(groups.ended(first), [], "held for the second");
    assert_eq!(groups.spoke(id(2), Sight::V1 { first: true }), Route::Join(second));
    groups.accepted(at(0), id(3), peer(1)).unwrap();
    groups.complete(second);
    groups.accepted(at(0), id(4), peer(1)).unwrap();
    assert_eq!(groups.ended(second), [id(3)], "the other one has its deadline");
    assert_eq!((groups.load(), groups.deadline()), ((1, 0), Some(at(5))));
}

#[test]
fn transfers_and_connections_are_bounded() {
    let config = GroupsConfig { most_groups: 2, most_connections: 3, most_waiting: 5, ..GroupsConfig::default() };
    let mut groups = Groups::new(config);
    let mut next = 0;
    let mut accept = |groups: &mut Groups, last| {
        next += 1;
        groups.accepted(at(0), id(next), peer(last)).map(|_| id(next))
    };
    for _ in 0..3 {
        accept(&mut groups, 1).unwrap();
    }
    assert_eq!(accept(&mut groups, 1), Err(TurnedAway::WaitingOfAddress));
    accept(&mut groups, 2).unwrap();
    let last = accept(&mut groups, 3).unwrap();
    assert_eq!(accept(&mut groups, 4), Err(TurnedAway::Waiting));
    groups.closed(last);
    let four = accept(&mut groups, 4).unwrap();
    assert!(matches!(groups.spoke(four, Sight::V1 { first: true }), Route::Start(_)));
    let Route::Start(group) = groups.spoke(id(1), Sight::V1 { first: true }) else { panic!("no group") };
    assert_eq!(groups.spoke(id(2), Sight::V1 { first: true }), Route::Join(group));
    assert_eq!(groups.spoke(id(3), Sight::V1 { first: true }), Route::Join(group));
    let more = accept(&mut groups, 1).unwrap();
    assert_eq!(groups.spoke(more, Sight::V1 { first: true }), Route::Close(TurnedAway::Connections));
    groups.left(group);
    let more = accept(&mut groups, 1).unwrap();
    assert_eq!(groups.spoke(more, Sight::V1 { first: true }), Route::Join(group), "a place is free again");
    let third = accept(&mut groups, 7).unwrap();
    assert_eq!(groups.spoke(third, Sight::V1 { first: true }), Route::Close(TurnedAway::Groups));
    assert_eq!(groups.counts().turned_away, 4);
}
