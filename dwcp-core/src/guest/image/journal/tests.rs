//! What a journal counts, when it is durable by itself, and when it is written anew.

use super::*;
use crate::extent::FlatPage;
use crate::session::Fingerprint;
use crate::session::leaves::leaf;
use crate::storage::Disk;
use crate::wire::Name;

const ID: TransferId = TransferId([7; 16]);
const R: RegionId = RegionId(0);

struct Desk {
    _folder: tempfile::TempDir,
    journal: Journal,
}

/// A journal without a committer of pages, some of which are held from before.
fn desk(pages: u64, held: &[u32]) -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Folder> = Arc::new(Disk::open(folder.path()).unwrap());
    let layout = Layout::new(&[pages * 4096]).unwrap();
    let leaves = Leaves::new(&layout);
    held.iter().for_each(|&page| leaves.set(FlatPage(page), leaf(&[9; 4096])));
    let about = About { peer: Fingerprint([3; 32]), name: Name::new("vm1").unwrap(), layout };
    let data = disk.create("data").unwrap();
    let journal = Journal::begin(disk, ID, &about, data, &leaves, None).unwrap();
    Desk { _folder: folder, journal }
}

fn claimed(journal: &Journal, pages: u32) -> Vec<u32> {
    let noted = journal.keeper.noted();
    (0..pages).filter(|&page| noted.claimed(page)).collect()
}

#[test]
fn what_is_held_from_before_is_durable_and_counted() {
    let desk = desk(100, &[3, 4, 5, 90]);
    assert_eq!(desk.journal.durable(), 4);
    assert_eq!(claimed(&desk.journal, 100), [3, 4, 5, 90]);
}

#[test]
fn a_full_group_is_durable_although_nobody_asked() {
    let pages = u32::try_from(GROUP_PAGES).unwrap();
    let desk = desk(u64::from(pages) + 1, &[]);
    let leaves = vec![leaf(&[1; 4096]); GROUP_PAGES];
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
    let (_, held) = Journal::read(desk.journal.keeper.log.lock().unwrap().file.as_ref()).unwrap().unwrap();
    assert_eq!(held.get(FlatPage(3)), zero_leaf());
    assert_eq!(held.get(FlatPage(5)), leaf(&[9; 4096]));
}

#[test]
fn a_journal_is_written_anew_when_it_has_grown_much_and_not_before() {
    let desk = desk(100, &[3]);
    let file = || Arc::clone(&desk.journal.keeper.log.lock().unwrap().file);
    let first = file();
    desk.journal.note(R, 4, &[leaf(&[1; 4096])]);
    desk.journal.flush().unwrap();
    assert!(Arc::ptr_eq(&first, &file()));
    desk.journal.keeper.log.lock().unwrap().limit = 0;
    desk.journal.note(R, 5, &[leaf(&[1; 4096])]);
    desk.journal.flush().unwrap();
    assert!(!Arc::ptr_eq(&first, &file()));
    assert!(desk.journal.keeper.log.lock().unwrap().limit >= SLACK_BYTES);
    assert_eq!(desk.journal.durable(), 3);
}
