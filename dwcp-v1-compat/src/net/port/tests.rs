use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::advance;

use super::*;
use crate::wire::Framing;

const FIRST: Sight = Sight::V1 { first: true };
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HEADER: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9];

fn port(allowed: &[IpAddr]) -> (Arc<LegacyPort>, LegacyListener) {
    LegacyPort::new(PlaintextPolicy::new(Framing::Amst16, allowed.iter().copied()), Arc::default())
}

/// Both ends of a connection.
async fn connection(listener: &TcpListener) -> (std::net::TcpStream, TcpStream, SocketAddr) {
    let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, from) = listener.accept().await.unwrap();
    (far, near, from)
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_has_five_seconds_whoever_it_is() {
    let listener = listener().await;
    for allowed in [vec![LOCAL], vec![]] {
        let (port, v1) = port(&allowed);
        let (_far, near, from) = connection(&listener).await;
        let start = Instant::now();
        let sorted = port.sort(near, from).await;
        assert!(matches!(sorted, Sorted::TurnedAway(TurnedAway::TimedOut, Some(_))), "{sorted:?}");
        // The clock of this test counts whole milliseconds.
        let waited = start.elapsed().as_millis();
        assert!((5000..5010).contains(&waited), "{waited} ms");
        assert_eq!(v1.counts().silent, u64::try_from(allowed.len()).unwrap());
        assert_eq!(port.table.lock().groups.load(), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_beside_a_transfer_is_held_to_its_end() {
    let listener = listener().await;
    let (port, mut v1) = port(&[LOCAL]);
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::Taken));
    let arrival = v1.accept().await.unwrap();
    let (_silent, near, from) = connection(&listener).await;
    let held = Arc::clone(&port);
    let held = tokio::spawn(async move { held.sort(near, from).await });
    advance(Duration::from_secs(3600)).await;
    tokio::task::yield_now().await;
    assert!(!held.is_finished());
    drop(arrival);
    assert!(matches!(held.await.unwrap(), Sorted::Taken));
    assert_eq!((v1.counts().held, v1.counts().silent), (1, 0));
    assert_eq!(port.table.lock().groups.load(), (0, 0));
    assert!(port.table.lock().waiting.is_empty() && port.table.lock().transfers.is_empty());
}

#[tokio::test]
async fn tls_is_handed_on_with_all_its_bytes() {
    use tokio::io::AsyncReadExt;

    let listener = listener().await;
    let (port, v1) = port(&[LOCAL]);
    let hello = [0x16, 3, 1, 0, 200, 1, 7, 7];
    let (mut far, near, from) = connection(&listener).await;
    far.write_all(&hello).unwrap();
    let Sorted::Tls(mut near) = port.sort(near, from).await else { panic!("it is TLS") };
    let mut read = [0; 8];
    near.read_exact(&mut read).await.unwrap();
    assert_eq!((read, v1.counts().tls), (hello, 1));
    port.authenticated(from.ip());
    // From now on its address may not go back.
    let (mut far, near, from) = connection(&listener).await;
    far.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::TurnedAway(TurnedAway::DowngradeRefused, Some(_))));
}

/// Its address may speak v1: that is no refusal of clear text, which would send an operator to look for an attacker.
#[tokio::test]
async fn v1_that_nobody_takes_any_more_is_counted_as_that() {
    let listener = listener().await;
    let (port, v1) = port(&[LOCAL]);
    drop(v1);
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    let sorted = port.sort(near, from).await;
    assert!(matches!(sorted, Sorted::Taken), "{sorted:?}");
    let counts = port.table.lock().groups.counts();
    assert_eq!((counts.unclaimed, counts.started, counts.turned_away), (1, 1, 0));
    assert_eq!(port.table.lock().groups.load(), (0, 0), "its place is free again");
    // So is one that came and is not wanted.
    let (port, mut v1) = self::port(&[LOCAL]);
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::Taken));
    drop(v1.accept().await.unwrap());
    assert_eq!((v1.counts().unclaimed, v1.counts().started), (1, 1));
    // And who may not is refused for that, whoever listens.
    let (port, v1) = self::port(&[]);
    drop(v1);
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::TurnedAway(TurnedAway::ClearText, Some(_))));
    assert_eq!(port.table.lock().groups.counts().unclaimed, 0);
}

#[tokio::test]
async fn what_ends_before_its_opening_is_over_is_garbage_and_ends_the_wait() {
    let listener = listener().await;
    let (port, v1) = port(&[LOCAL]);
    let (mut far, near, from) = connection(&listener).await;
    far.write_all(&HEADER[..7]).unwrap();
    drop(far);
    assert!(matches!(port.sort(near, from).await, Sorted::TurnedAway(TurnedAway::NotAuthenticated, Some(_))));
    let (far, near, from) = connection(&listener).await;
    drop(far);
    assert!(matches!(port.sort(near, from).await, Sorted::Taken), "v1 opens what it does not use");
    assert_eq!((v1.counts().garbage, v1.counts().silent), (1, 0));
}

/// Its further connections are sorted at the same time on other threads: each of them carries chunks.
#[tokio::test]
async fn a_connection_right_behind_the_first_one_finds_its_transfer() {
    let (port, _v1) = port(&[LOCAL]);
    let [mut first, mut second] = [(); 2].map(|()| port.table.enter(LOCAL).unwrap());
    let Way::Start(group, mut more) = first.spoke(Sight::V1 { first: true }) else { panic!("it is the first") };
    // Before anybody has made an arrival of the first.
    let Way::Join(joined, joins) = second.spoke(Sight::V1 { first: true }) else { panic!("its transfer has begun") };
    assert_eq!(joined, group);
    let listener = listener().await;
    let (_far, near, _) = connection(&listener).await;
    assert!(matches!(port.join(joined, &joins, FIRST, near, LOCAL), Sorted::Taken));
    assert!(more.recv().await.is_some());
}

/// It is stored, or has failed, and nobody reads what comes for it: no such connection may end without a word.
#[tokio::test]
async fn what_speaks_when_a_message_is_complete_begins_the_next_transfer() {
    let listener = listener().await;
    let (port, mut v1) = port(&[LOCAL]);
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::Taken));
    let Way::Join(group, joins) = port.table.enter(LOCAL).unwrap().spoke(FIRST) else { panic!("it is taken") };
    let arrival = v1.accept().await.unwrap();
    let more = arrival.more().unwrap();
    let (connections, place) = arrival.split();
    assert!(!more.is_closed());
    drop(connections);
    assert!(more.is_closed());
    // One that was sorted before that, and one after it.
    let (_far, near, from) = connection(&listener).await;
    assert!(matches!(port.join(group, &joins, FIRST, near, from.ip()), Sorted::Taken));
    let next = v1.accept().await.unwrap();
    let (mut speaks, near, from) = connection(&listener).await;
    speaks.write_all(&HEADER).unwrap();
    assert!(matches!(port.sort(near, from).await, Sorted::Taken));
    assert_eq!((v1.counts().started, v1.counts().joined, v1.counts().unclaimed), (2, 2, 0));
    drop(next);
    assert_eq!(v1.counts().unclaimed, 1);
    drop(place);
    assert_eq!(port.table.lock().groups.load(), (0, 0));
    assert!(port.table.lock().waiting.is_empty() && port.table.lock().transfers.is_empty());
}
