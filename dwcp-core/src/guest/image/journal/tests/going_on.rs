//! A journal that is gone on with where it stands.

use super::*;

/// What a receiver does that is started again with what another one left.
struct Again {
    desk: Desk,
    /// Of the journal, before anything was done to it.
    was: End,
}

impl Again {
    /// After something was done to the journal's file, with nobody at it.
    fn left(desk: Desk, touch: impl FnOnce(&dyn File, u64)) -> Self {
        let Desk { journal, disk, heard, _folder } = desk;
        drop(journal);
        let file = disk.open(&journal_name(ID)).unwrap();
        let was = Journal::read(Arc::clone(&file)).unwrap().unwrap().replay.end;
        touch(file.as_ref(), was.bytes);
        heard.try_iter().for_each(drop);
        let old = Journal::read(file).unwrap().unwrap();
        let data = disk.open("data").unwrap();
        let names: Arc<dyn Folder> = disk.clone();
        let journal = Journal::go_on(names, ID, &old, data, None).unwrap().unwrap();
        Self { desk: Desk { journal, disk, heard, _folder }, was }
    }

    fn length(&self) -> u64 {
        self.desk.disk.stat(&journal_name(ID)).unwrap().unwrap().bytes
    }
}

#[test]
fn it_is_durable_and_says_what_it_said_and_goes_on() {
    let before = desk(100, &[3, 4]);
    before.note(5, 1);
    let again = Again::left(before, |_, _| {});
    let desk = &again.desk;
    assert_eq!(desk.heard(), ["write journal", "sync journal"], "neither a new file nor a name");
    assert_eq!((desk.journal.durable(), claimed(&desk.journal, 100)), (3, vec![3, 4, 5]));
    desk.journal.forget(R, 4, 1).unwrap();
    desk.note(6, 2);
    desk.journal.flush().unwrap();
    assert_eq!(desk.heard(), [GROUP, GROUP].concat());
    assert_eq!(known(&desk.journal.layout, &desk.found()), [(0, 3), (0, 5), (0, 6)]);
}

#[test]
fn it_goes_on_as_often_as_it_was_left() {
    let mut desk = desk(100, &[]);
    for page in 0..50 {
        desk.note(page, 1);
        desk = Again::left(desk, |_, _| {}).desk;
        assert_eq!(desk.journal.durable(), u64::from(page) + 1);
    }
    assert_eq!(known(&desk.journal.layout, &desk.found()).len(), 50);
}

#[test]
fn what_a_crash_left_behind_its_end_is_gone() {
    let torn = desk(100, &[3]);
    let whole = torn.log().end.bytes;
    for page in [7, 8] {
        torn.note(page, 1);
        torn.journal.flush().unwrap();
    }
    torn.disk.open(&journal_name(ID)).unwrap().write_at(whole + 11, &[0; 32]).unwrap();
    let again = Again::left(torn, |_, end| assert_eq!(end, whole, "the entry of 8 is whole, but that of 7 is not"));
    assert_eq!(again.length(), again.was.bytes);
    again.desk.note(9, 1);
    again.desk.journal.flush().unwrap();
    assert_eq!(known(&again.desk.journal.layout, &again.desk.found()), [(0, 3), (0, 9)]);
}

#[test]
fn what_it_said_last_is_written_again_however_much_there_is_before() {
    let long = desk_of(&[200_000 * 4096], &(0..100_000).collect::<Vec<_>>(), None);
    let again = Again::left(long, |_, end| assert!(end > 2 * TAIL_BYTES));
    assert_eq!(again.desk.heard(), ["write journal", "sync journal"]);
    assert_eq!(known(&again.desk.journal.layout, &again.desk.found()).len(), 100_000);
}

#[test]
fn no_more_becomes_durable_at_a_time_than_would_be_written_again() {
    let desk = desk(40_000, &[]);
    let pages = u32::try_from(GROUP_PAGES).unwrap();
    let entries =
        (0..9).map(|at| Entry::Holds { region: R, first: at * pages, leaves: vec![leaf(&[1; 4096]); GROUP_PAGES] });
    desk.journal.keeper.noted().entries.extend(entries);
    desk.journal.flush().unwrap();
    let told = ["sync data", "write journal", "sync journal", "write journal", "sync journal"];
    assert_eq!(desk.heard(), told, "9 entries of 128 KiB");
    assert_eq!(known(&desk.journal.layout, &desk.found()).len(), 9 * GROUP_PAGES);
}

#[test]
fn one_that_is_much_longer_than_what_it_says_is_written_anew() {
    let desk = desk(100, &[3]);
    let longest = limit(PAGE_SHARE) / 2;
    let go_on = |bytes: u64| {
        let mut old = desk.read().unwrap().unwrap();
        old.file.set_len(bytes).unwrap();
        old.replay.end.bytes = bytes;
        let names: Arc<dyn Folder> = desk.disk.clone();
        Journal::go_on(names, ID, &old, Arc::clone(&desk.log().data), None).unwrap().is_some()
    };
    assert_eq!([longest, longest + 1].map(go_on), [true, false]);
}

#[test]
fn a_disk_that_fails_has_no_journal_to_go_on_with() {
    for at in ["write journal", "sync journal"] {
        let desk = desk(100, &[3]);
        desk.disk.fail(Some((at, || io::ErrorKind::StorageFull.into())));
        let names: Arc<dyn Folder> = desk.disk.clone();
        let data = Arc::clone(&desk.log().data);
        let failed = Journal::go_on(names, ID, &desk.read().unwrap().unwrap(), data, None);
        assert_eq!(failed.err().map(|error| error.kind()), Some(io::ErrorKind::StorageFull), "{at}");
        assert_eq!(known(&desk.journal.layout, &desk.found()), [(0, 3)]);
    }
}
