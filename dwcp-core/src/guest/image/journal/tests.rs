//! What a journal promises: what is durable and in which order, what it counts, and what it is after a failure.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use self::disk::{Failure, Told};
use super::*;
use crate::extent::FlatPage;
use crate::session::Fingerprint;
use crate::session::leaves::leaf;
use crate::wire::Name;

mod disk;
mod going_on;

const ID: TransferId = TransferId([7; 16]);
const R: RegionId = RegionId(0);
/// What a group does to a disk.
const GROUP: [&str; 3] = ["sync data", "write journal", "sync journal"];

pub(super) struct Desk {
    pub(super) journal: Journal,
    disk: Arc<Told>,
    heard: Receiver<&'static str>,
    _folder: tempfile::TempDir,
}

impl Desk {
    /// What was done to the disk since this was asked last.
    fn heard(&self) -> Vec<&'static str> {
        self.heard.try_iter().collect()
    }

    fn note(&self, page: u32, byte: u8) {
        self.journal.note(R, page, &[leaf(&[byte; 4096])]);
    }

    /// What whoever is started next finds.
    fn found(&self) -> Leaves {
        self.read().unwrap().unwrap().into_parts().1
    }

    fn read(&self) -> io::Result<Option<Old>> {
        Journal::read(self.disk.open(&journal_name(ID))?)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.journal.keeper.log.lock().unwrap()
    }
}

fn about(regions: &[u64]) -> About {
    let layout = Layout::new(regions).unwrap();
    About { peer: Fingerprint([3; 32]), name: Name::new("vm1").unwrap(), layout }
}

/// A journal of an image, of whose first region some pages are held from before.
pub(super) fn desk_of(regions: &[u64], held: &[u32], committer: Option<Arc<Committer>>) -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let (disk, heard) = Told::open(folder.path());
    let about = about(regions);
    let leaves = Leaves::new(&about.layout);
    let nine = leaf(&[9; 4096]);
    held.iter().for_each(|&page| leaves.set(FlatPage(page), nine));
    let data = disk.create("data").unwrap();
    let names: Arc<dyn Folder> = disk.clone();
    let journal = Journal::begin(names, ID, &about, data, &leaves, committer).unwrap();
    let mut done: Vec<_> = heard.try_iter().collect();
    done.dedup();
    assert_eq!(done, ["write journal", "sync journal", "name journal"]);
    Desk { journal, disk, heard, _folder: folder }
}

/// The same of one region, without a committer.
fn desk(pages: u64, held: &[u32]) -> Desk {
    desk_of(&[pages * 4096], held, None)
}

fn claimed(journal: &Journal, pages: u32) -> Vec<u32> {
    let noted = journal.keeper.noted();
    (0..pages).filter(|&page| noted.claimed(page)).collect()
}

/// Pages that are not zeros.
fn known(layout: &Layout, leaves: &Leaves) -> Vec<(u16, u32)> {
    let known = |&page: &u32| leaves.get(FlatPage(page)) != zero_leaf();
    let place = |page| layout.locate(FlatPage(page)).map(|(region, page)| (region.0, page));
    (0..layout.flat_pages()).filter(known).filter_map(place).collect()
}

#[test]
fn what_is_held_from_before_is_durable_and_counted() {
    let desk = desk(100, &[3, 4, 5, 90]);
    assert_eq!(desk.journal.durable(), 4);
    assert_eq!(claimed(&desk.journal, 100), [3, 4, 5, 90]);
}

#[test]
fn a_full_group_is_durable_although_nobody_asked() {
    // 16 MiB: what a crash costs at most, but for 50 ms.
    let pages = 4096;
    let desk = desk(u64::from(pages) + 1, &[]);
    let leaves = vec![leaf(&[1; 4096]); 4096];
    desk.journal.note(R, 0, &leaves[1..]);
    assert_eq!(desk.journal.durable(), 0);
    desk.journal.note(R, pages - 1, &leaves[..1]);
    assert_eq!(desk.journal.durable(), u64::from(pages));
    desk.journal.note(R, pages, &leaves[..1]);
    assert_eq!(desk.journal.durable(), u64::from(pages), "the next group has one page");
    desk.journal.flush().unwrap();
    assert_eq!(desk.journal.durable(), u64::from(pages) + 1);
}

#[test]
fn what_is_forgotten_is_that_page_and_no_other() {
    let desk = desk(100, &[3, 5]);
    desk.journal.forget(R, 3, 2).unwrap();
    assert_eq!(claimed(&desk.journal, 100), [5]);
    assert_eq!(desk.journal.durable(), 1);
    let held = desk.found();
    assert_eq!(held.get(FlatPage(3)), zero_leaf());
    assert_eq!(held.get(FlatPage(5)), leaf(&[9; 4096]));
}

#[test]
fn a_journal_is_written_anew_when_it_has_grown_much_and_not_before() {
    let desk = desk(100, &[3]);
    let file = || Arc::clone(&desk.log().file);
    let first = file();
    desk.note(4, 1);
    desk.journal.flush().unwrap();
    assert!(Arc::ptr_eq(&first, &file()));
    // A group of one page: kind, place and count, its leaf, the chain.
    let next = desk.log().end.bytes + 11 + 32 + 16;
    desk.log().limit = next;
    desk.note(5, 1);
    desk.journal.flush().unwrap();
    assert!(Arc::ptr_eq(&first, &file()), "it is not longer than it may be");
    assert_eq!(desk.log().end.bytes, next);
    desk.note(6, 1);
    desk.journal.flush().unwrap();
    assert!(!Arc::ptr_eq(&first, &file()));
    assert!(desk.log().limit >= 64 * 1024 * 1024, "that of a small image is not written anew all the time");
    assert_eq!(desk.journal.durable(), 4);
}

#[test]
fn a_group_is_in_the_image_before_the_journal_says_so_and_is_durable_then() {
    let desk = desk(100, &[]);
    desk.note(3, 1);
    desk.note(4, 2);
    assert_eq!((desk.heard(), desk.journal.durable()), (vec![], 0), "nobody needs it yet");
    desk.journal.flush().unwrap();
    assert_eq!((desk.heard(), desk.journal.durable()), (GROUP.to_vec(), 2));
    assert_eq!([3, 4, 5].map(|page| desk.found().get(FlatPage(page))), [1, 2, 0].map(|byte| leaf(&[byte; 4096])));
    desk.journal.flush().unwrap();
    assert_eq!(desk.heard(), [""; 0], "all of it is durable");
}

#[test]
fn what_is_noted_when_a_journal_is_left_is_durable() {
    let desk = desk(100, &[]);
    desk.note(3, 1);
    let Desk { journal, disk, heard, _folder } = desk;
    drop(journal);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), GROUP);
    let held = Journal::read(disk.open(&journal_name(ID)).unwrap()).unwrap().unwrap().into_parts().1;
    assert_eq!(held.get(FlatPage(3)), leaf(&[1; 4096]));
}

#[test]
fn what_is_known_is_durably_unknown_before_it_is_overwritten_and_all_else_need_not_wait() {
    let desk = desk(200, &[3, 5, 6, 63, 64, 199]);
    desk.journal.forget(R, 3, 5).unwrap();
    assert_eq!((desk.heard(), desk.journal.durable()), (GROUP.to_vec(), 3));
    assert_eq!(known(&desk.journal.layout, &desk.found()), [(0, 63), (0, 64), (0, 199)]);
    desk.journal.forget(R, 3, 60).unwrap();
    assert_eq!(desk.heard(), [""; 0], "nobody knows them any more, and 63 is not among them");
    // Noted, and not durable yet: the journal must not say so afterwards.
    desk.note(4, 1);
    desk.journal.forget(R, 4, 1).unwrap();
    assert_eq!((desk.heard(), desk.journal.durable()), (GROUP.to_vec(), 3));
    assert_eq!(desk.found().get(FlatPage(4)), zero_leaf());
    desk.journal.forget(R, 64, u32::MAX).unwrap();
    assert_eq!((known(&desk.journal.layout, &desk.found()), desk.journal.durable()), (vec![(0, 63)], 1));
}

#[test]
fn what_was_told_twice_is_known_no_less() {
    let desk = desk(100, &[]);
    desk.note(4, 1);
    desk.note(4, 1);
    desk.journal.forget(R, 4, 1).unwrap();
    assert_eq!(desk.heard(), GROUP);
    assert_eq!(desk.found().get(FlatPage(4)), zero_leaf());
}

#[test]
fn zeros_are_told_but_neither_counted_nor_waited_for() {
    let desk = desk(100, &[]);
    desk.journal.note(R, 3, &[leaf(&[1; 4096]), zero_leaf(), leaf(&[2; 4096])]);
    desk.journal.flush().unwrap();
    assert_eq!((desk.heard(), desk.journal.durable()), (GROUP.to_vec(), 2));
    desk.journal.forget(R, 4, 1).unwrap();
    assert_eq!(desk.heard(), [""; 0]);
    desk.note(3, 0);
    desk.journal.flush().unwrap();
    assert_eq!(known(&desk.journal.layout, &desk.found()), [(0, 5)]);
}

#[test]
fn pages_of_one_region_are_never_taken_for_those_of_another() {
    let desk = desk_of(&[70 * 4096, 5 * 4096, 70 * 4096], &[69, 128, 129, 130, 192, 193], None);
    let layout = desk.journal.layout.clone();
    assert_eq!(desk.journal.durable(), 6);
    assert_eq!(known(&layout, &desk.found()), [(0, 69), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]);
    // Two who overwrite at once, whose pages have numbers that follow one another.
    let mut noted = desk.journal.keeper.noted();
    noted.forget(RegionId(1), 0);
    noted.forget(RegionId(2), 1);
    noted.forget(RegionId(1), 2);
    drop(noted);
    desk.journal.flush().unwrap();
    assert_eq!(desk.journal.durable(), 3);
    assert_eq!(known(&layout, &desk.found()), [(0, 69), (1, 1), (2, 0)]);
    // What lies beyond a region belongs to nobody.
    desk.journal.note(R, 69, &[leaf(&[1; 4096]), leaf(&[2; 4096])]);
    desk.journal.flush().unwrap();
    assert_eq!(known(&layout, &desk.found()), [(0, 69), (1, 1), (2, 0)]);
    desk.heard();
    desk.journal.forget(RegionId(3), 0, 9).unwrap();
    assert_eq!(desk.heard(), [""; 0]);
}

#[test]
fn after_a_failure_nothing_is_tried_again_and_everybody_is_told_why() {
    let full: Failure = || io::Error::from_raw_os_error(28);
    let strange: Failure = || io::ErrorKind::InvalidData.into();
    for (at, failure) in GROUP.iter().flat_map(|at| [(*at, full), (*at, strange)]) {
        let desk = desk(100, &[9]);
        let why = |done: io::Result<()>| done.map_err(|error| (error.kind(), error.raw_os_error()));
        let expected = why(Err(failure()));
        desk.disk.fail(Some((at, failure)));
        desk.note(3, 1);
        assert_eq!(why(desk.journal.flush()), expected, "{at}");
        assert_eq!(desk.heard().last(), Some(&at), "nothing is done after it");
        // A disk that works again may have lost what it did not write.
        desk.disk.fail(None);
        desk.note(4, 1);
        assert_eq!(why(desk.journal.flush()), expected, "{at}");
        assert_eq!(why(desk.journal.forget(R, 50, 1)), expected, "{at}: also of a page that nobody knows");
        assert_eq!(why(desk.journal.forget(R, 9, 1)), expected, "{at}");
        assert_eq!((desk.heard(), desk.journal.durable()), (vec![], 1), "{at}");
    }
}

#[test]
fn a_journal_has_its_name_when_all_of_it_is_durable_and_not_before() {
    let desk = desk(100, &[3]);
    let begin = |held: &Leaves| {
        let names: Arc<dyn Folder> = desk.disk.clone();
        let data = Arc::clone(&desk.log().data);
        Journal::begin(names, ID, &about(&[100 * 4096]), data, held, None)
    };
    let held = Leaves::new(&desk.journal.layout);
    held.set(FlatPage(4), leaf(&[1; 4096]));
    for at in ["write journal", "sync journal", "name journal"] {
        desk.disk.fail(Some((at, || io::ErrorKind::StorageFull.into())));
        assert_eq!(begin(&held).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(desk.heard().last(), Some(&at));
        assert_eq!(known(&desk.journal.layout, &desk.found()), [(0, 3)], "{at}: the one before is whole");
    }
    desk.disk.fail(None);
    let journal = begin(&held).unwrap();
    assert_eq!(known(&journal.layout, &desk.found()), [(0, 4)], "whatever the tries before left");
    assert_eq!(desk.disk.list().unwrap().len(), 2);
}

#[test]
fn a_long_journal_is_read_as_it_was_written_and_goes_on() {
    let pages = 3 * u32::try_from(READ_BYTES).unwrap() / 32;
    let layout = Layout::new(&[u64::from(pages) * 4096, 4096]).unwrap();
    // Longer than a group, and more of them than a journal writes at a time.
    let held: Vec<u32> = (1..pages).collect();
    let desk = desk_of(&[u64::from(pages) * 4096, 4096], &held, None);
    assert_eq!(desk.journal.durable(), u64::from(pages) - 1);
    assert_eq!(claimed(&desk.journal, pages), held);
    desk.journal.note(RegionId(1), 0, &[leaf(&[1; 4096])]);
    desk.journal.flush().unwrap();
    let (found, nine) = (desk.found(), leaf(&[9; 4096]));
    assert_eq!(known(&layout, &found).len(), held.len() + 1);
    assert!(held.iter().all(|&page| found.get(FlatPage(page)) == nine));
}

#[test]
fn a_journal_that_is_written_anew_says_what_the_old_one_said_and_goes_on() {
    let desk = desk(100, &[3]);
    desk.note(4, 1);
    desk.log().limit = 0;
    desk.journal.flush().unwrap();
    let anew = ["write journal", "sync journal", "name journal", "sync names"];
    assert_eq!(desk.heard(), [&GROUP[..], &anew[..]].concat());
    desk.journal.forget(R, 3, 1).unwrap();
    desk.note(5, 2);
    desk.journal.flush().unwrap();
    assert_eq!(desk.heard(), [GROUP, GROUP].concat());
    assert_eq!([3, 4, 5].map(|page| desk.found().get(FlatPage(page))), [0, 1, 2].map(|byte| leaf(&[byte; 4096])));

    // A name that may not be durable is not relied upon.
    desk.log().limit = 0;
    desk.disk.fail(Some(("sync names", || io::ErrorKind::StorageFull.into())));
    desk.note(6, 3);
    assert_eq!(desk.journal.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(desk.journal.durable(), 2);
}

#[test]
fn a_journal_that_somebody_else_changed_is_not_written_anew() {
    let desk = desk(100, &[3]);
    desk.log().limit = 0;
    desk.disk.open(&journal_name(ID)).unwrap().write_at(0, b"mine").unwrap();
    desk.note(4, 1);
    assert_eq!(desk.journal.flush().unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(desk.read().unwrap().is_none());
    assert!(Journal::about(desk.disk.open(&journal_name(ID)).unwrap().as_ref()).unwrap().is_none());
}

#[test]
fn a_journal_says_whose_it_is() {
    let desk = desk(100, &[3]);
    let file = desk.disk.open(&journal_name(ID)).unwrap();
    assert_eq!(Journal::about(file.as_ref()).unwrap(), Some(about(&[100 * 4096])));
    assert_eq!(desk.read().unwrap().unwrap().about(), &about(&[100 * 4096]));
}

#[test]
fn a_group_that_began_or_is_full_becomes_durable_although_nobody_needs_it() {
    let desk = desk_of(&[2 * 4096 * 4096], &[], Some(Committer::of_process()));
    let group = || GROUP.map(|_| desk.heard.recv_timeout(Duration::from_secs(60)).unwrap());
    desk.note(3, 1);
    assert_eq!(group(), GROUP);
    assert_eq!(desk.found().get(FlatPage(3)), leaf(&[1; 4096]));
    desk.journal.note(R, 4, &vec![leaf(&[1; 4096]); GROUP_PAGES]);
    assert_eq!(group(), GROUP);
}
