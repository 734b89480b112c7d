//! Both directions against a v1 peer that shares no line with this crate (`tests/legacy`), over real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::big_endian_bytes,
    reason = "tests outside a #[test] function"
)]

mod legacy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dwcp_core::guest::{ImageFolder, Memory};
use dwcp_core::wire::{Name, TransferId};
use dwcp_core::{Guest, GuestError, Layout, RegionId};
use dwcp_v1_compat::message::{Assurance, Deadlines, DefectKind, Shape};
use dwcp_v1_compat::net::{
    Arrivals, Baseline, BytesLanding, DiskOptions, FileLanding, FilePayload, GuestLanding, GuestPayload, Landing,
    MigrateOptions, Payload, ReceiveOptions, SendOptions, Tally, TransferEnding, TransferError, accept, dial, receive,
    receive_disk, receive_memory, send, send_disk, send_memory,
};
use dwcp_v1_compat::wire::{ContentError, Framing, PackError, Tier, delta};
use tokio::net::TcpListener;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(20);

fn payload(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn options(shape: Shape) -> ReceiveOptions {
    ReceiveOptions { shape, most_connections: 256, deadlines: Deadlines::default(), tally: Tally::default() }
}

fn amst16() -> ReceiveOptions {
    options(Shape::Amst16 { most_bytes: u64::from(u32::MAX), most_chunk_bytes: 1 << 20 })
}

fn migrate() -> MigrateOptions {
    MigrateOptions { send: SendOptions::new(Framing::Amst16), tier: Tier::Local, spool: std::env::temp_dir() }
}

/// Memory that is full of `bytes`.
fn memory(regions: &[u64], bytes: &[u8]) -> Arc<Memory> {
    let layout = Layout::new(regions).unwrap();
    let guest = Memory::new(layout.clone());
    let mut rest = bytes;
    for (id, region) in layout.regions() {
        let (now, later) = rest.split_at(rest.len().min(region.bytes as usize));
        let mut pages = now.to_vec();
        pages.resize(region.pages as usize * 4096, 0);
        guest.write(id, 0, &pages).unwrap();
        rest = later;
    }
    Arc::new(guest)
}

fn bytes_of(guest: &Arc<Memory>) -> Vec<u8> {
    let mut payload = GuestPayload(Arc::clone(guest) as Arc<dyn Guest>);
    let mut all = vec![0; payload.bytes() as usize];
    payload.read_at(0, &mut all).unwrap();
    all
}

#[tokio::test]
async fn mst8_both_ways_though_the_peer_dials_both_times() {
    let data = payload(3_000_000);
    let (listener, address) = listener().await;
    let writer = legacy::dial_and_write(address, legacy::mst8_streams(&data, 65_536, 5));
    let shape = Shape::Mst8 { total: 3_000_000, chunk_bytes: 65_536 };
    let options = options(shape);
    let mut landing = BytesLanding::new(1 << 22);
    let received = receive(Arrivals::listen(listener, LOCAL), &mut landing, &options).await.unwrap();
    writer.join().unwrap();
    assert!(landing.into_bytes() == data);
    assert_eq!((received.bytes, received.chunks), (3_000_000, 46));
    assert!(received.closed);
    assert_eq!(received.assurance, Assurance::LengthUnverified);
    assert_eq!(
        (options.tally.received().ended, options.tally.received().bytes),
        ([(TransferEnding::Done, 1)].into(), 3_000_000)
    );

    let (listener, address) = self::listener().await;
    let reader = legacy::mst8_dial_and_read(address, 5);
    let streams = accept(&listener, LOCAL, 5, SOON).await.unwrap();
    let options = SendOptions { chunk_bytes: 65_536, ..SendOptions::new(Framing::Mst8) };
    let sent = send(streams, &mut data.clone(), &options).await.unwrap();
    assert_eq!((sent.bytes, sent.chunks, sent.closed), (3_000_000, 46, true));
    assert!(reader.join().unwrap() == data);
    assert_eq!(
        (options.tally.sent().ended, options.tally.sent().bytes),
        ([(TransferEnding::Done, 1)].into(), 3_000_000)
    );
}

#[tokio::test]
async fn amst16_both_ways_from_file_to_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = payload(2_500_001);
    let (listener, address) = listener().await;
    let writer = legacy::dial_and_write(address, legacy::amst16_streams(&data, 65_536, 16));
    let place = folder.path().join("came");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&place).unwrap();
    let mut landing = FileLanding::new(file);
    let arrivals = Arrivals::fixed(accept(&listener, LOCAL, 16, SOON).await.unwrap());
    let received = receive(arrivals, &mut landing, &amst16()).await.unwrap();
    writer.join().unwrap();
    assert!(std::fs::read(&place).unwrap() == data);
    assert_eq!((received.assurance, received.connections, received.silent), (Assurance::Unverified, 16, 1));

    let (address, reader) = legacy::amst16_listen_and_read(16);
    let streams = dial(address, 16, SOON).await.unwrap();
    let mut file = FilePayload::new(std::fs::File::open(&place).unwrap()).unwrap();
    send(streams, &mut file, &SendOptions::new(Framing::Amst16)).await.unwrap();
    assert!(reader.join().unwrap() == data);
}

#[tokio::test]
async fn a_message_of_no_bytes_is_nothing_on_the_wire() {
    let (address, reader) = legacy::amst16_listen_and_read(3);
    let streams = dial(address, 3, SOON).await.unwrap();
    let sent = send(streams, &mut Vec::new(), &SendOptions::new(Framing::Amst16)).await.unwrap();
    assert_eq!((sent.bytes, sent.chunks, sent.closed), (0, 0, true));
    assert!(reader.join().unwrap().is_empty());
}

#[tokio::test]
async fn memory_both_ways() {
    // Two regions, one of which ends within a page; more than the window, and much of it does not compress.
    let regions = [20 << 20, 4096 * 3 + 100];
    let data = payload((20 << 20) + 4096 * 3 + 100);
    let source = memory(&regions, &data);
    let (address, reader) = legacy::amst16_listen_and_read(4);
    let guest = Arc::clone(&source) as Arc<dyn Guest>;
    let sent = send_memory(guest, migrate(), move || dial(address, 4, SOON)).await.unwrap();
    assert!(sent.closed && sent.bytes > 20 << 20);
    assert!(!source.is_running(), "nobody knows whether it arrived: it is not let run by itself");
    let packet = reader.join().unwrap();
    assert_eq!(packet.len() as u64, sent.bytes);
    assert!(legacy::unpack(&packet) == data);

    let sink = memory(&regions, &[]);
    let (listener, address) = listener().await;
    let writer = legacy::dial_and_write(address, legacy::amst16_streams(&packet, 65_536, 16));
    let arrivals = Arrivals::listen(listener, LOCAL);
    let received = receive_memory(arrivals, Arc::clone(&sink) as Arc<dyn Guest>, None, amst16()).await.unwrap();
    writer.join().unwrap();
    assert_eq!(received.assurance, Assurance::Checksums);
    assert!(bytes_of(&sink) == data);
}

#[tokio::test]
async fn delta_flag_1_in_both_senses() {
    let regions = [1_000_000];
    let base = payload(1_000_000);
    let mut next = base.clone();
    next[5000] ^= 0xff;
    next[999_999] ^= 0xff;
    let mut ops = Vec::new();
    delta::encode("vm7_memory", &base, &next, &mut ops).unwrap();
    let held = || Some(Baseline { vm: "vm7".into(), image: memory(&regions, &base) });
    for (content, baseline) in [(&ops, held()), (&next, held()), (&next, None)] {
        let sink = memory(&regions, &[]);
        let (listener, address) = listener().await;
        let packet = legacy::packet(1, 2, content);
        let writer = legacy::dial_and_write(address, legacy::amst16_streams(&packet, 4096, 4));
        let arrivals = Arrivals::listen(listener, LOCAL);
        let guest = Arc::clone(&sink) as Arc<dyn Guest>;
        receive_memory(arrivals, guest, baseline, amst16()).await.unwrap();
        writer.join().unwrap();
        assert!(bytes_of(&sink) == next);
    }
    let sink = memory(&regions, &[]);
    let (listener, address) = listener().await;
    let writer = legacy::dial_and_write(address, legacy::amst16_streams(&legacy::packet(1, 2, &ops), 4096, 4));
    let refused = receive_memory(Arrivals::listen(listener, LOCAL), sink, None, amst16()).await.unwrap_err();
    assert!(matches!(refused, TransferError::Content(ContentError::OtherBaseline { .. })), "{refused}");
    writer.join().unwrap();
}

/// An image folder, and a staging file in it.
fn staging(folder: &tempfile::TempDir, bytes: u64) -> Arc<dyn Guest> {
    let images = ImageFolder::open(folder.path()).unwrap();
    let name = Name::new("disk").unwrap();
    Arc::new(images.create(&name, TransferId([9; 16]), Layout::new(&[bytes]).unwrap()).unwrap())
}

fn files(folder: &tempfile::TempDir) -> usize {
    std::fs::read_dir(folder.path()).unwrap().count()
}

#[tokio::test]
async fn a_disk_both_ways_into_the_staging_file_of_an_image() {
    const BYTES: usize = 5 * 65_536 + 777;
    let data = payload(BYTES);
    let disk = DiskOptions { block_bytes: 65_536, partial: false };
    let source = memory(&[BYTES as u64], &data);
    let (address, reader) = legacy::amst16_listen_and_read(16);
    send_disk(source, disk, migrate(), move || dial(address, 16, SOON)).await.unwrap();
    assert!(legacy::read_block_list(&reader.join().unwrap(), 65_536) == data);

    let folder = tempfile::tempdir().unwrap();
    let image = staging(&folder, BYTES as u64);
    let (listener, address) = listener().await;
    let list = legacy::block_list(&data, 65_536);
    let writer = legacy::dial_and_write(address, legacy::amst16_streams(&list, 16_384, 8));
    let arrivals = Arrivals::listen(listener, LOCAL);
    let came = receive_disk(arrivals, Arc::clone(&image), disk, None, amst16()).await.unwrap();
    writer.join().unwrap();
    assert_eq!((came.blocks, came.came), (6, 6));
    assert!(!folder.path().join("disk").exists(), "not before the caller says so");
    image.resume().unwrap();
    assert!(std::fs::read(folder.path().join("disk")).unwrap() == data);
}

#[tokio::test]
async fn blocks_that_are_missing_are_counted_and_their_image_thrown_away() {
    let data = payload(4 * 65_536);
    let list = legacy::block_list(&data, 65_536);
    // The first three of the list: blocks 3, 2 and 1.
    let mut end = 0;
    for _ in 0..3 {
        end += 8 + u32::from_be_bytes(list[end + 4..end + 8].try_into().unwrap()) as usize;
    }
    for partial in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let image = staging(&folder, 4 * 65_536);
        let (listener, address) = listener().await;
        let writer = legacy::dial_and_write(address, legacy::amst16_streams(&list[..end], 16_384, 8));
        let disk = DiskOptions { block_bytes: 65_536, partial };
        let arrivals = Arrivals::listen(listener, LOCAL);
        let came = receive_disk(arrivals, image, disk, None, amst16()).await;
        writer.join().unwrap();
        if partial {
            let came = came.unwrap();
            assert_eq!((came.blocks, came.came, files(&folder)), (4, 3, 1));
        } else {
            let missing = came.unwrap_err();
            assert!(matches!(missing, TransferError::MissingBlocks { missing: 1, blocks: 4 }), "{missing}");
            assert_eq!(files(&folder), 0, "the staging file is gone");
        }
    }
}

#[tokio::test]
async fn a_plain_image_lands_in_a_staging_file_from_any_connection() {
    const BYTES: usize = 40 * 16_384 + 5000;
    let data = payload(BYTES);
    let folder = tempfile::tempdir().unwrap();
    let image = staging(&folder, BYTES as u64);
    let mut landing = GuestLanding::new(Arc::clone(&image)).unwrap();
    let (listener, address) = listener().await;
    let mut streams = legacy::mst8_streams(&data, 16_384, 3);
    // One chunk twice, with the same bytes.
    streams[1].extend(legacy::mst8_chunk(&data, 16_384, 40));
    let writer = legacy::dial_and_write(address, streams);
    let shape = Shape::Mst8 { total: BYTES as u64, chunk_bytes: 16_384 };
    let arrivals = Arrivals::listen(listener, LOCAL);
    let received = receive(arrivals, &mut landing, &options(shape)).await.unwrap();
    writer.join().unwrap();
    assert_eq!(received.duplicates, 1);
    image.stage().unwrap();
    image.resume().unwrap();
    assert!(std::fs::read(folder.path().join("disk")).unwrap() == data);
}

#[tokio::test]
async fn each_defect_is_an_error_a_count_and_an_image_thrown_away() {
    let data = payload(200_000);
    let packet = legacy::packet(0, 0, &data);
    let good = || legacy::amst16_streams(&packet, 16_384, 4);
    let torn = || {
        let mut streams = good();
        streams[0].pop();
        streams
    };
    let eaten = || {
        let mut streams = good();
        streams[1].remove(20_000);
        streams
    };
    let mixed = || {
        let mut streams = good();
        let other = legacy::amst16_chunk(&packet[..100_000], 16_384, 3);
        streams[2].extend(other);
        streams
    };
    let hole = || vec![legacy::amst16_chunk(&packet, 16_384, 0)];
    let huge = || vec![[0, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0xff, 0, 0, 0].to_vec()];
    let cases: [(DefectKind, Vec<Vec<u8>>); 4] = [
        (DefectKind::Torn, torn()),
        (DefectKind::MixedTotals, mixed()),
        (DefectKind::Missing, hole()),
        (DefectKind::Length, huge()),
    ];
    let receive_all = async |streams: Vec<Vec<u8>>| {
        let folder = tempfile::tempdir().unwrap();
        let deadlines = Deadlines { redial: Duration::from_millis(50), ..Deadlines::default() };
        let options = ReceiveOptions { deadlines, ..amst16() };
        let tally = options.tally.clone();
        let (listener, address) = listener().await;
        let image = staging(&folder, 200_000);
        let writer = legacy::dial_and_write(address, streams);
        let error = receive_memory(Arrivals::listen(listener, LOCAL), image, None, options).await.unwrap_err();
        writer.join().unwrap();
        assert_eq!(files(&folder), 0, "{error}: the staging file is gone");
        (error, tally.defects())
    };
    for (kind, streams) in cases {
        let (error, counts) = receive_all(streams).await;
        assert!(matches!(&error, TransferError::Defect(defect) if defect.kind() == kind), "{kind:?}: {error}");
        assert_eq!(counts.of(kind), 1, "{kind:?}");
    }
    let (error, counts) = receive_all(eaten()).await;
    assert!(matches!(error, TransferError::Defect(_)), "{error}");
    assert_eq!(counts.all().map(|(_, count)| count).sum::<u64>(), 1);
}

/// It began at the port, so it must end in the counters, and leave no staging file.
#[tokio::test]
async fn what_a_setting_makes_impossible_is_counted_and_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let options = amst16();
    let disk = DiskOptions { block_bytes: 1000, partial: false };
    let nobody = Arrivals::<tokio::net::TcpStream>::fixed(Vec::new());
    let image = staging(&folder, 200_000);
    let error = receive_disk(nobody, image, disk, None, options.clone()).await.unwrap_err();
    assert!(matches!(error, TransferError::Config(_)), "{error}");
    let received = options.tally.received();
    assert_eq!((received.begun, received.live, received.ended), (1, 0, [(TransferEnding::Refused, 1)].into()));
    assert_eq!(files(&folder), 0, "the staging file is gone");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    let (listener, address) = listener().await;
    let quiet = std::net::TcpStream::connect(address).unwrap();
    let deadlines = Deadlines { first: Duration::from_millis(50), ..Deadlines::default() };
    let options = ReceiveOptions { deadlines, ..amst16() };
    let mut landing = BytesLanding::new(1 << 20);
    let error = receive(Arrivals::listen(listener, LOCAL), &mut landing, &options).await.unwrap_err();
    assert!(matches!(&error, TransferError::Defect(defect) if defect.kind() == DefectKind::Silent), "{error}");
    drop(quiet);
}

#[tokio::test]
async fn one_connection_too_many_is_hung_up_on_and_counted() {
    let data = payload(100_000);
    let (listener, address) = listener().await;
    let mut streams = legacy::amst16_streams(&data, 16_384, 2);
    streams.push(Vec::new());
    let writer = legacy::dial_and_write(address, streams);
    let options = ReceiveOptions { most_connections: 2, ..amst16() };
    let mut landing = BytesLanding::new(1 << 20);
    let arrivals = Arrivals::fixed(accept(&listener, LOCAL, 3, SOON).await.unwrap());
    let received = receive(arrivals, &mut landing, &options).await.unwrap();
    writer.join().unwrap();
    assert_eq!(received.bytes, 100_000);
    assert!(landing.into_bytes() == data);
    assert_eq!(options.tally.defects().of(DefectKind::TooManyConnections), 1);
}

/// Memory that knows whether it was let run.
struct Live {
    memory: Arc<Memory>,
    devices: usize,
    paused: AtomicBool,
}

impl Guest for Live {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        assert!(self.paused.load(Ordering::SeqCst), "read while it runs");
        self.memory.read(region, first, into)
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn save_devices(&self) -> Result<Vec<u8>, GuestError> {
        Ok(vec![1; self.devices])
    }
}

fn live(bytes: u64, devices: usize) -> Arc<Live> {
    Arc::new(Live { memory: memory(&[bytes], &[]), devices, paused: AtomicBool::new(false) })
}

#[tokio::test]
async fn a_guest_runs_on_at_its_source_when_v1_cannot_take_it() {
    let nobody = || async { Err::<Vec<tokio::net::TcpStream>, _>(TransferError::Config("nobody is there")) };
    let guest = live(8192, 0);
    let error = send_memory(guest.clone(), migrate(), nobody).await.unwrap_err();
    assert!(matches!(error, TransferError::Config("nobody is there")), "{error}");
    assert!(!guest.paused.load(Ordering::SeqCst));

    let guest = live(8192, 12);
    let error = send_memory(guest.clone(), migrate(), nobody).await.unwrap_err();
    assert!(matches!(error, TransferError::DeviceState { bytes: 12 }), "{error}");
    assert!(!guest.paused.load(Ordering::SeqCst));

    // More than a v1 decoder takes: found before the guest is stopped, and counted as begun and ended.
    let guest = live((256 << 20) + 4096, 0);
    let options = migrate();
    let tally = options.send.tally.clone();
    let error = send_memory(guest.clone(), options, nobody).await.unwrap_err();
    assert_eq!((tally.sent().begun, tally.sent().ended), (1, [(TransferEnding::Refused, 1)].into()));
    assert!(matches!(error, TransferError::Pack(PackError::TooLarge { .. })), "{error}");
    assert!(!guest.paused.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_peer_that_drops_the_message_is_no_success() {
    let (listener, address) = listener().await;
    let peer = tokio::spawn(async move {
        // With bytes unread, closing is a reset.
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
    });
    let guest = live(8 << 20, 0);
    let options = MigrateOptions { tier: Tier::Global, ..migrate() };
    let memory = payload(8 << 20);
    guest.memory.write(RegionId(0), 0, &memory).unwrap();
    let error = send_memory(guest.clone(), options, move || dial(address, 1, SOON)).await.unwrap_err();
    assert!(matches!(error, TransferError::Lost { connection: 0, .. }), "{error}");
    assert!(!guest.paused.load(Ordering::SeqCst), "it runs at its source");
    peer.await.unwrap();
}

/// Memory of two regions, the last of which ends within a page.
const LENT: [u64; 2] = [5 * 4096, 300 * 4096 + 100];

/// Streams that a peer writes and then holds for as long as it is wanted.
async fn holding(address: SocketAddr, streams: &[Vec<u8>]) -> Vec<tokio::net::TcpStream> {
    use tokio::io::AsyncWriteExt;
    let mut held = Vec::new();
    for bytes in streams {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_bytes_go_between_sockets_and_memory_that_is_lent() {
    let data = payload(305 * 4096 + 100);
    for chunk in [65_536, 4096, 1001] {
        let sink = memory(&LENT, &[]);
        let (listener, address) = listener().await;
        let writer = legacy::dial_and_write(address, legacy::amst16_streams(&data, chunk, 5));
        let mut landing = GuestLanding::new(Arc::clone(&sink) as Arc<dyn Guest>).unwrap();
        assert!(landing.lender().is_some());
        let received = receive(Arrivals::listen(listener, LOCAL), &mut landing, &amst16()).await.unwrap();
        writer.join().unwrap();
        assert!(bytes_of(&sink) == data, "chunks of {chunk}");
        assert_eq!((received.bytes, received.connections, received.closed), (data.len() as u64, 5, true));

        let (address, reader) = legacy::amst16_listen_and_read(5);
        let streams = dial(address, 5, SOON).await.unwrap();
        let options = SendOptions { chunk_bytes: chunk as u32, ..SendOptions::new(Framing::Amst16) };
        let mut lent = GuestPayload(Arc::clone(&sink) as Arc<dyn Guest>);
        let sent = send(streams, &mut lent, &options).await.unwrap();
        assert_eq!((sent.bytes, sent.closed), (data.len() as u64, true));
        assert!(reader.join().unwrap() == data, "chunks of {chunk}");
    }
}

#[tokio::test]
async fn chunks_that_come_again_are_compared_with_memory_that_is_lent() {
    let data = payload(305 * 4096 + 100);
    let mut others = data.clone();
    others[3 * 65_536 + 7] ^= 1;
    for (again, fine) in [(&data, true), (&others, false)] {
        let sink = memory(&LENT, &[]);
        let (listener, address) = listener().await;
        let mut streams = legacy::amst16_streams(&data, 65_536, 1);
        streams[0].extend(legacy::amst16_chunk(again, 65_536, 3));
        let writing = tokio::spawn(async move { drop(holding(address, &streams).await) });
        let mut landing = GuestLanding::new(Arc::clone(&sink) as Arc<dyn Guest>).unwrap();
        let arrivals = Arrivals::fixed(accept(&listener, LOCAL, 1, SOON).await.unwrap());
        let options = amst16();
        let received = receive(arrivals, &mut landing, &options).await;
        writing.await.unwrap();
        assert_eq!(received.map(|received| received.duplicates).ok(), fine.then_some(1));
        assert_eq!(options.tally.defects().of(DefectKind::Duplicate), u64::from(!fine));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_silent_is_given_up_and_who_stays_when_all_is_there_is_not_waited_for() {
    let data = payload(305 * 4096 + 100);
    let soon = Duration::from_millis(200);
    let whole = legacy::amst16_streams(&data, 65_536, 3);
    let mut part = whole.clone();
    part[1].truncate(100_000);
    for (streams, fine) in [(whole, true), (part, false)] {
        let sink = memory(&LENT, &[]);
        let (listener, address) = listener().await;
        let writing = tokio::spawn(async move { holding(address, &streams).await });
        // A machine that is busy is no peer that fell silent.
        let silence = if fine { SOON } else { soon };
        let deadlines = Deadlines { silence, linger: soon, ..Deadlines::default() };
        let options = ReceiveOptions { deadlines, ..amst16() };
        let mut landing = GuestLanding::new(Arc::clone(&sink) as Arc<dyn Guest>).unwrap();
        let taking = receive(Arrivals::listen(listener, LOCAL), &mut landing, &options);
        let received = tokio::time::timeout(SOON, taking).await.unwrap();
        drop(writing.await.unwrap());
        assert_eq!(received.map(|received| received.closed).ok(), fine.then_some(false));
        assert_eq!(options.tally.defects().of(DefectKind::Silent), u64::from(!fine));
        assert!(!fine || bytes_of(&sink) == data);
    }
}

/// A reader that was told to end may be in the middle of a read, on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_writes_to_memory_that_was_lent_after_the_message_was_cancelled() {
    let data = payload(305 * 4096 + 100);
    for _ in 0..20 {
        let sink = memory(&LENT, &[]);
        let (listener, address) = listener().await;
        let streams = legacy::amst16_streams(&data, 65_536, 4);
        let writing = tokio::spawn(async move { holding(address, &streams).await });
        let guest = Arc::clone(&sink) as Arc<dyn Guest>;
        let taking = tokio::spawn(async move {
            let mut landing = GuestLanding::new(guest).unwrap();
            receive(Arrivals::listen(listener, LOCAL), &mut landing, &amst16()).await
        });
        while sink.peek(RegionId(0), 0) == Some(0) {
            tokio::task::yield_now().await;
        }
        taking.abort();
        assert!(taking.await.unwrap_err().is_cancelled());
        sink.clear().unwrap();
        writing.abort();
        let _ = writing.await;
        assert!(bytes_of(&sink).iter().all(|byte| *byte == 0));
    }
}
