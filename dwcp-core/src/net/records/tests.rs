use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use super::*;
use crate::extent::Layout;
use crate::storage::Stat;
use crate::wire::{Digest, Name};

fn record() -> Record {
    Record {
        transfer: TransferId([1; 16]),
        epoch: FenceEpoch(1),
        attempt: 1,
        root: Digest([2; 32]),
        name: Name::new("vm").unwrap(),
        layout: Layout::new(&[4096]).unwrap(),
        peer: Fingerprint([3; 32]),
        standing: Standing::Ready,
    }
}

// spec: P-2
#[test]
fn a_record_is_stored_replaced_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path().join("deep/er")).unwrap();
    let mut record = record();
    assert_eq!(records.load(record.transfer).unwrap(), None);
    records.store(&record).unwrap();
    record.standing = Standing::Ran;
    records.store(&record).unwrap();
    assert_eq!(records.list().unwrap().records, [record.clone()]);
    assert_eq!(records.load(record.transfer).unwrap(), Some(record.clone()));
    records.forget(record.transfer).unwrap();
    records.forget(record.transfer).unwrap();
    assert!(records.list().unwrap().is_empty());
}

// spec: P-1
#[test]
fn a_damaged_record_is_told_by_name_and_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path()).unwrap();
    records.store(&record()).unwrap();
    let torn = TransferId([5; 16]);
    fs::write(records.path(torn).unwrap(), "dwcp record 2\n").unwrap();
    fs::write(folder.path().join("x.record"), [0xff]).unwrap();
    let mut listing = records.list().unwrap();
    assert_eq!(listing.records, [record()]);
    listing.damaged.sort_by_key(|damaged| damaged.transfer);
    let told: Vec<_> = listing.damaged.iter().map(|damaged| (damaged.transfer, damaged.error.to_string())).collect();
    assert!(told[0].0.is_none() && told[0].1.contains("x.record"), "{told:?}");
    assert!(told[1].0 == Some(torn) && told[1].1.contains(&torn.to_string()), "{told:?}");
    assert!(matches!(records.load(torn), Err(RecordsError::Record { .. })), "not none");
}

// spec: P-4
#[test]
fn only_old_records_of_what_ran_are_pruned() {
    let folder = tempfile::tempdir().unwrap();
    let records = Records::open(folder.path()).unwrap();
    let (day, now) = (Duration::from_secs(86_400), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31));
    let all = [(Standing::Ran, 8), (Standing::Ran, 6), (Standing::Ready, 8), (Standing::GaveUp, 8)];
    for ((standing, days), id) in all.into_iter().zip(0..) {
        let record = Record { transfer: TransferId([id; 16]), standing, ..record() };
        records.store(&record).unwrap();
        let file = fs::File::open(records.path(record.transfer).unwrap()).unwrap();
        file.set_modified(now - day * days).unwrap();
    }
    let torn = records.path(TransferId([9; 16])).unwrap();
    fs::write(&torn, "torn").unwrap();
    fs::File::open(&torn).unwrap().set_modified(now - day * 8).unwrap();
    assert_eq!(records.prune(now, day * 7).unwrap(), [TransferId([0; 16])]);
    assert_eq!(records.list().unwrap().records.len(), 3);
    assert!(torn.exists());
}

// spec: O-6
#[test]
fn what_was_offered_is_offered_again_under_its_id_until_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = |byte| TransferId([byte; 16]);
    let (first, offering) = records.offering("vm1 host:1", id(1)).unwrap();
    assert!(first == id(1) && offering.is_some());
    // Somebody else at the same time is somebody else.
    let (other, none) = records.offering("vm1 host:1", id(2)).unwrap();
    assert!(other == id(2) && none.is_none());
    drop(offering);
    assert_eq!(records.offering("vm2 host:1", id(3)).unwrap().0, id(3), "another key");
    assert_eq!(records.offering("vm1 host:1", id(4)).unwrap().0, id(1), "it was cut off");
    records.store(&Record { transfer: id(1), standing: Standing::GaveUp, ..record() }).unwrap();
    records.forget(id(1)).unwrap();
    assert_eq!(records.offering("vm1 host:1", id(5)).unwrap().0, id(5), "it was given up");
}

#[test]
fn an_offer_tells_whether_it_is_under_way_and_is_withdrawn_only_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = TransferId([1; 16]);
    let (_, offering) = records.offering("vm1 host:1", id).unwrap();
    records.note(id, "words").unwrap();
    // Another process may have crashed while it made one.
    fs::write(dir.path().join(name(TransferId([2; 16]), OFFERED)), "").unwrap();
    let begun = fs::metadata(dir.path().join(name(id, OFFERED))).unwrap().modified().unwrap();
    let offers = |busy| vec![Offered { transfer: id, key: "vm1 host:1".into(), busy, begun, promised: false }];
    assert_eq!(records.offers().unwrap(), offers(true));
    assert!(!records.withdraw(id).unwrap(), "it is under way");
    drop(offering);
    assert_eq!(records.offers().unwrap(), offers(false));
    records.store(&Record { standing: Standing::GaveUp, ..record() }).unwrap();
    assert!(!records.withdraw(id).unwrap(), "it was given up");
    assert_eq!(records.noted(id).unwrap().as_deref(), Some("words"));
    fs::remove_file(records.path(id).unwrap()).unwrap();
    assert!(records.withdraw(id).unwrap() && records.withdraw(id).unwrap());
    assert_eq!((records.offers().unwrap(), records.noted(id).unwrap()), (vec![], None));
}

/// Only what is nobody's business any more: neither given up, nor promised, nor under way, nor begun again since.
#[test]
fn an_offer_that_was_cut_off_expires_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let id = |byte| TransferId([byte; 16]);
    let place = |byte, ending| dir.path().join(name(id(byte), ending));
    let day = Duration::from_secs(86_400);
    let offered = |byte: u8| records.offering(&format!("vm{byte} host:1"), id(byte)).unwrap().1.unwrap();
    for byte in 1..=7 {
        drop(offered(byte));
        records.note(id(byte), "words").unwrap();
    }
    let begun = fs::metadata(place(1, OFFERED)).unwrap().modified().unwrap();
    let aged = |byte: u8, days: u32| {
        let file = fs::File::options().write(true).open(place(byte, OFFERED)).unwrap();
        file.set_modified(begun - day * days).unwrap();
    };
    (1..=7).for_each(|byte| aged(byte, 31));
    aged(2, 29);
    records.store(&Record { transfer: id(3), standing: Standing::GaveUp, ..record() }).unwrap();
    fs::write(place(4, RECORD), "torn").unwrap();
    records.may_be_promised(id(5), true).unwrap();
    records.may_be_promised(id(5), true).unwrap();
    drop(offered(6));
    let seventh = offered(7);
    aged(7, 31);
    // A crash while one was made.
    fs::write(place(8, OFFERED), "").unwrap();
    aged(8, 31);

    let expire = || {
        let mut expired = records.expire(begun + day, day * 31).unwrap();
        expired.sort_by_key(|expired| expired.transfer);
        expired.into_iter().map(|expired| (expired.transfer, expired.key)).collect::<Vec<_>>()
    };
    assert_eq!(expire(), [(id(1), "vm1 host:1".into()), (id(8), String::new())]);
    assert!(!place(1, OFFERED).exists() && !place(1, WORDS).exists());
    assert!((2..=7).all(|byte| place(byte, OFFERED).exists() && place(byte, WORDS).exists()));
    assert_eq!(records.offering("vm1 host:1", id(9)).unwrap().0, id(9), "it was forgotten");
    assert!(records.offers().unwrap().iter().all(|offer| offer.promised == (offer.transfer == id(5))));
    // Another session of it began, and what was promised was taken back.
    records.may_be_promised(id(5), false).unwrap();
    drop(seventh);
    assert_eq!(expire().len(), 2);
}

/// Whoever had opened it then would offer what nobody remembers.
#[test]
fn an_offer_that_was_forgotten_is_known_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let (id, store) = (TransferId([1; 16]), records.store.as_ref().unwrap());
    let place = name(id, OFFERED);
    drop(records.offering("vm1 host:1", id).unwrap());
    let file = store.names.open(&place).unwrap();
    assert!(store.is_named(&place, file.as_ref()).unwrap());
    records.may_be_promised(id, true).unwrap();
    assert!(records.withdraw(id).unwrap() && !store.is_named(&place, file.as_ref()).unwrap());
    assert_eq!(store.names.list().unwrap(), [OFFERS_LOCK]);
    drop(records.offering("vm1 host:1", id).unwrap());
    assert!(!store.is_named(&place, file.as_ref()).unwrap(), "another file");
}

// spec: O-7
#[test]
fn fences_raised_at_the_same_time_end_at_the_highest() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Fingerprint([7; 32]);
    let raise = |epoch| {
        // As many processes would.
        let records = Records::open(dir.path()).unwrap();
        std::thread::spawn(move || records.raise_fence(peer, FenceEpoch(epoch)).unwrap())
    };
    let threads: Vec<_> = (2..40).map(|number| (number, raise(2 + number % 9))).collect();
    for (number, thread) in threads {
        let raised = thread.join().unwrap();
        assert!((FenceEpoch(2 + number % 9)..=FenceEpoch(10)).contains(&raised), "{raised}");
    }
    assert_eq!(Records::open(dir.path()).unwrap().fence(peer).unwrap(), FenceEpoch(10));
}

// spec: O-7
#[test]
fn a_fence_is_one_of_a_pair_and_never_falls() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let peer = Fingerprint([7; 32]);
    assert_eq!(records.fence(peer).unwrap(), FenceEpoch(1));
    records.raise_fence(peer, FenceEpoch(5)).unwrap();
    records.raise_fence(peer, FenceEpoch(4)).unwrap();
    let again = Records::open(dir.path()).unwrap();
    assert_eq!(
        (again.fence(peer).unwrap(), again.fence(Fingerprint([8; 32])).unwrap()),
        (FenceEpoch(5), FenceEpoch(1))
    );
    assert!(again.list().unwrap().is_empty(), "it is no record");
    fs::write(dir.path().join(fence_name(peer)), "torn").unwrap();
    assert!(again.fence(peer).is_err() && again.raise_fence(peer, FenceEpoch(9)).is_err(), "not the first again");
}

/// A folder where somebody is told of each call before it is made.
struct Told<F> {
    disk: Disk,
    before: F,
}

impl<F> std::fmt::Debug for Told<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}

impl<F: Fn(&'static str, &str) + Send + Sync + 'static> Told<F> {
    fn records(dir: &Path, before: F) -> Records {
        Records::over(Arc::new(Self { disk: Disk::open(dir).unwrap(), before }))
    }
}

impl<F: Fn(&'static str, &str) + Send + Sync + 'static> Folder for Told<F> {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        (self.before)("open", name);
        self.disk.open(name)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        (self.before)("create", name);
        self.disk.create(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        (self.before)("stat", name);
        self.disk.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.replace(from, to)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// Records of which `one` is done, and `other`, of another process, in the middle of it: when `one` comes to such a call of such
/// a name, it waits until `other` is done or has to wait itself.
fn in_the_middle<T: Send + 'static, U: Send + 'static>(
    dir: &Path,
    (call, ending): (&'static str, &'static str),
    one: impl FnOnce(&Records) -> T,
    other: impl FnOnce(&Records) -> U + Send + 'static,
) -> (T, U) {
    let (waits, waited) = channel();
    let (begins, begun) = channel::<()>();
    let others = Told::records(dir, move |call, name| {
        if (call, name) == ("open", OFFERS_LOCK) {
            let _ = waits.send(());
        }
    });
    let other = thread::spawn(move || {
        begun.recv().unwrap();
        other(&others)
    });
    let meets = Mutex::new(Some((begins, waited)));
    let ones = Told::records(dir, move |now, name| {
        let meets = if now == call && name.ends_with(ending) { meets.lock().unwrap().take() } else { None };
        if let Some((begins, waited)) = meets {
            begins.send(()).unwrap();
            // An error: it is done.
            let _ = waited.recv();
        }
    });
    let one = one(&ones);
    drop(ones);
    (one, other.join().expect("one came there"))
}

// spec: O-6
#[test]
fn of_two_who_begin_the_same_at_once_one_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let offering = |byte| move |records: &Records| records.offering("vm1 host:1", TransferId([byte; 16])).unwrap();
    let (one, other) = in_the_middle(dir.path(), ("create", OFFERED), offering(1), offering(2));
    assert!(one.1.is_some() && other.1.is_none(), "{one:?} {other:?}");
    assert_eq!(Records::open(dir.path()).unwrap().offers().unwrap().len(), 1);
}

#[test]
fn who_begins_while_offers_are_looked_at_is_not_told_that_they_are_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let id = |byte| TransferId([byte; 16]);
    let begin = |byte| move |records: &Records| records.offering("vm1 host:1", id(byte)).unwrap();
    drop(begin(1)(&Records::open(dir.path()).unwrap()));
    let (offers, again) = in_the_middle(dir.path(), ("stat", PROMISED), |records| records.offers().unwrap(), begin(2));
    assert!(again.0 == id(1) && again.1.is_some(), "{again:?}");
    assert!(offers.iter().map(|offer| (offer.transfer, offer.busy)).eq([(id(1), false)]));
    drop(again);
    let (gone, again) =
        in_the_middle(dir.path(), ("open", RECORD), |records| records.withdraw(id(1)).unwrap(), begin(3));
    assert!(gone && again.0 == id(3) && again.1.is_some(), "{again:?}");
}

/// A process that is killed leaves them.
#[test]
fn what_is_half_done_goes_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let (day, id) = (Duration::from_secs(86_400), |byte| TransferId([byte; 16]));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31);
    let lies = |place: &String, days| {
        fs::write(dir.path().join(place), "").unwrap();
        let file = fs::File::options().write(true).open(dir.path().join(place)).unwrap();
        file.set_modified(now - day * days).unwrap();
        file
    };
    let beside = |place: String| format!("{place}{BESIDE}");
    let fence = fence_name(Fingerprint([7; 32]));
    let go = [
        beside(name(id(1), RECORD)),
        beside(name(id(1), WORDS)),
        beside(fence.clone()),
        name(id(1), WORDS),
        name(id(1), PROMISED),
    ];
    let stay = [
        // Somebody else's, and one that is no half of anything.
        "x.tmp".into(),
        fence,
        // Of what is offered, or is given up, or cannot be read.
        name(id(2), OFFERED),
        name(id(2), WORDS),
        name(id(2), PROMISED),
        name(id(3), RECORD),
        name(id(3), WORDS),
    ];
    let look = || {
        let mut names = records.store.as_ref().unwrap().names.list().unwrap();
        names.retain(|name| name != OFFERS_LOCK);
        names.sort();
        names
    };
    let mut all = [&go[..], &stay[..]].concat();
    all.sort();
    for (place, days) in go.iter().map(|place| (place, 6)).chain(stay.iter().map(|place| (place, 8))) {
        lies(place, days);
    }
    records.prune(now, day * 7).unwrap();
    assert_eq!(look(), all, "young");
    for place in &go {
        lies(place, 8);
    }
    let held = lies(&beside(name(id(4), RECORD)), 8);
    held.try_lock().unwrap();
    records.prune(now, day * 7).unwrap();
    let mut left = [&stay[..], &[beside(name(id(4), RECORD))]].concat();
    left.sort();
    assert_eq!(look(), left);
    drop(held);
    // What is left of the same record is in nobody's way.
    records.store(&Record { transfer: id(4), ..record() }).unwrap();
    assert!(!look().contains(&beside(name(id(4), RECORD))));
    lies(&go[0], 31);
    records.expire(now, day * 30).unwrap();
    assert!(!look().contains(&go[0]), "at a source, too");
}
