//! An image that is staged, cut off, gone on with, handed over, thrown away.

use std::cell::Cell;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dwcp_hde::is_zero;

use self::stingy::Stingy;
use super::super::folder::{ImageFolder, PARKED_KEPT, Swept};
use super::super::place::{beside_name, journal_name, staging_name};
use super::*;
use crate::session::leaves::Tree;
use crate::session::leaves::leaf;
use crate::session::{Fingerprint, Record, Standing};
use crate::storage::Disk;
use crate::wire::{FenceEpoch, GuestKind, Name, Offer, TransferId};

mod stingy;

const ID: TransferId = TransferId([7; 16]);
const BYTES: u64 = 70 * PAGE + 5;

fn name() -> Name {
    Name::new("vm1").unwrap()
}

fn folder(dir: &Path) -> ImageFolder {
    ImageFolder::open(dir).unwrap()
}

fn on_disk(dir: &Path) -> std::fs::Metadata {
    dir.join(staging_name(ID)).metadata().unwrap()
}

fn create(dir: &Path, replace: bool) -> Result<ImageStaging, GuestError> {
    folder(dir).replacing(replace).create(&name(), ID, Layout::new(&[BYTES]).unwrap())
}

/// The promise about what was staged.
fn promise(staging: &ImageStaging, name: Name) -> Record {
    let (layout, leaves) = (staging.layout.clone(), Leaves::new(&staging.layout));
    for (id, region) in layout.regions() {
        for page in 0..region.pages {
            let mut bytes = vec![0; PAGE_BYTES];
            staging.read(id, page, &mut bytes).unwrap();
            leaves.set(layout.flat(id, page).unwrap(), leaf(&bytes));
        }
    }
    let root = Tree::new(&layout).root(&leaves);
    let offer = Offer {
        transfer: ID,
        epoch: FenceEpoch(1),
        kind: GuestKind::Image,
        name,
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout,
    };
    Record::of(&offer, 1, root, Fingerprint([0; 32]), Standing::Ready)
}

fn ones() -> Vec<u8> {
    vec![1; PAGE_BYTES]
}

#[test]
fn an_image_becomes_visible_only_by_resume_and_once_more_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let staging = create(dir.path(), false).unwrap();
    let part = dir.path().join(staging_name(ID));
    assert_eq!(part.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // The last page is partial: its tail is dropped.
    staging.write(RegionId(0), 70, &ones()).unwrap();
    staging.write(RegionId(0), 3, &ones()).unwrap();
    staging.stage().unwrap();
    assert!(!dir.path().join("vm1").exists());
    assert!(!staging.is_visible().unwrap());
    staging.resume().unwrap();
    staging.resume().unwrap();
    assert!(staging.is_visible().unwrap());
    assert!(!part.exists());
    let again = folder(dir.path()).reopen(&promise(&staging, name())).unwrap();
    again.resume().unwrap();
    again.discard();

    let bytes = std::fs::read(dir.path().join("vm1")).unwrap();
    assert_eq!(u64::try_from(bytes.len()).unwrap(), BYTES);
    assert_eq!(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>(), PAGE + 5);
    assert_eq!(bytes[3 * PAGE_BYTES], 1);
}

#[test]
fn a_restart_before_run_finds_the_staging_file() {
    let dir = tempfile::tempdir().unwrap();
    let staging = create(dir.path(), false).unwrap();
    staging.write(RegionId(0), 0, &ones()).unwrap();
    staging.stage().unwrap();
    let record = promise(&staging, name());
    drop(staging);
    folder(dir.path()).reopen(&record).unwrap().resume().unwrap();
    assert_eq!(std::fs::read(dir.path().join("vm1")).unwrap()[..PAGE_BYTES], ones());
    let other = folder(dir.path()).reopen(&Record { name: Name::new("vm2").unwrap(), ..record });
    assert!(other.unwrap_err().to_string().contains("vm2"));
}

#[test]
fn after_a_crash_a_file_of_the_final_name_must_be_the_one_that_was_staged() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&[BYTES, 3 * PAGE]).unwrap();
    let staging = folder(dir.path()).create(&name(), ID, layout).unwrap();
    staging.write(RegionId(0), 70, &ones()).unwrap();
    staging.write(RegionId(1), 1, &ones()).unwrap();
    let record = promise(&staging, name());
    staging.resume().unwrap();
    let visible = dir.path().join("vm1");
    let reopen = || folder(dir.path()).reopen(&record);
    reopen().unwrap().resume().unwrap();

    // Somebody's own image of the same size; one byte is enough.
    let bytes = std::fs::read(&visible).unwrap();
    for at in [0, bytes.len() - 1] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        std::fs::write(&visible, &other).unwrap();
        let found = reopen().unwrap();
        assert!(matches!(found.verify(), Err(GuestError::NotStaged { .. })));
        assert!(matches!(found.resume(), Err(GuestError::NotStaged { .. })));
        found.discard();
        assert_eq!(std::fs::read(&visible).unwrap(), other, "it is not ours to touch");
    }
    std::fs::write(&visible, &bytes[1..]).unwrap();
    assert!(matches!(reopen(), Err(GuestError::NotStaged { what }) if what.contains("vm1")));
}

#[test]
fn zero_pages_stay_holes_and_become_zero_again() {
    let dir = tempfile::tempdir().unwrap();
    let staging = create(dir.path(), false).unwrap();
    let mut three = vec![0; 3 * PAGE_BYTES];
    three[PAGE_BYTES] = 5;
    staging.write(RegionId(0), 10, &three).unwrap();
    let mut read = vec![1; 3 * PAGE_BYTES];
    staging.read(RegionId(0), 10, &mut read).unwrap();
    assert!(read == three);
    assert_eq!(on_disk(dir.path()).blocks() * 512, BYTES.next_multiple_of(PAGE), "its space is reserved");
    staging.stage().unwrap();
    let blocks = on_disk(dir.path()).blocks();
    assert!(blocks * 512 <= 16 * PAGE, "{blocks} blocks: the image is not sparse");
    staging.write(RegionId(0), 10, &vec![0; 3 * PAGE_BYTES]).unwrap();
    staging.read(RegionId(0), 10, &mut read).unwrap();
    assert!(is_zero(&read));
}

/// The last page is cut off after five bytes.
#[test]
fn zeros_over_what_was_written_are_zeros_few_or_many_of_them() {
    for sparse in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&[BYTES]).unwrap();
        let staging = folder(dir.path()).sparse(sparse).create(&name(), ID, layout).unwrap();
        // Pages 10 to 12 and 20 to 59 become zeros, and 65 to the end; 68 was never written.
        let written = (0..68).chain(69..71);
        written.clone().for_each(|page| staging.write(RegionId(0), page, &ones()).unwrap());
        for zeros in [10..13, 20..60, 65..71_u32] {
            staging.write(RegionId(0), zeros.start, &vec![0; zeros.len() * PAGE_BYTES]).unwrap();
        }
        let whole = |when: &str| {
            for page in 0..71 {
                let mut read = ones();
                staging.read(RegionId(0), page, &mut read).unwrap();
                let zero = (10..13).contains(&page) || (20..60).contains(&page) || page >= 65;
                assert_eq!(is_zero(&read), zero, "sparse {sparse}, {when}, page {page}");
                assert!(zero || read == ones());
            }
        };
        whole("before");
        staging.stage().unwrap();
        whole("staged");
        let bytes = on_disk(dir.path()).blocks() * 512;
        // 22 pages are left, and 9 zeros that are not worth a hole where space is not to be saved.
        let most = if sparse { 22 } else { 31 } * PAGE;
        assert!(bytes <= most + 4 * PAGE && bytes >= 22 * PAGE, "sparse {sparse}: {bytes}");
    }
}

// spec: V-5
#[test]
fn what_is_not_to_be_trusted_is_zeros_again_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let staging = go_on(dir.path(), &offer(1));
    for (region, page) in [(0, 5), (0, 6), (1, 9)] {
        receive(&staging, region, page, 3);
    }
    staging.clear().unwrap();
    let bytes = [(0, 5), (0, 6), (1, 9)].map(|(region, page)| byte(&staging, region, page));
    assert_eq!((bytes, staging.durable()), ([0; 3], 0));
    // What was taken for the image at its offer is not given to somebody else.
    let space = std::fs::metadata(dir.path().join(&staging.place.staging)).unwrap().blocks() * 512;
    assert!(space >= staging.layout.bytes(), "{space} bytes are left");
    receive(&staging, 0, 6, 4);
    drop(staging);
    let next = go_on(dir.path(), &offer(2));
    assert_eq!(held(&next), [(0, 6, leaf(&[4; PAGE_BYTES]))]);
}

#[test]
fn nothing_is_overwritten_without_replace() {
    let dir = tempfile::tempdir().unwrap();
    let existing = dir.path().join("vm1");
    std::fs::write(&existing, "old").unwrap();
    assert!(matches!(create(dir.path(), false), Err(GuestError::Exists { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no staging file is left");

    let staging = create(dir.path(), true).unwrap();
    staging.resume().unwrap();
    assert_eq!(existing.metadata().unwrap().len(), BYTES);

    // The name appears while the image is on its way.
    std::fs::remove_file(&existing).unwrap();
    let staging = create(dir.path(), false).unwrap();
    std::fs::write(&existing, "new").unwrap();
    assert!(matches!(staging.resume(), Err(GuestError::Exists { .. })));
    assert_eq!(std::fs::read(&existing).unwrap(), b"new");
    staging.discard();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn regions_lie_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&[PAGE + 1, 2 * PAGE]).unwrap();
    let staging = folder(dir.path()).create(&name(), ID, layout).unwrap();
    staging.write(RegionId(1), 0, &ones()).unwrap();
    staging.write(RegionId(0), 1, &vec![2; PAGE_BYTES]).unwrap();
    assert!(matches!(staging.write(RegionId(0), 2, &ones()), Err(GuestError::Outside { .. })));
    assert!(matches!(staging.write(RegionId(2), 0, &ones()), Err(GuestError::Outside { .. })));
    staging.resume().unwrap();
    let bytes = std::fs::read(dir.path().join("vm1")).unwrap();
    assert_eq!(bytes.len(), 3 * PAGE_BYTES + 1);
    assert_eq!(bytes[PAGE_BYTES - 1..PAGE_BYTES + 2], [0, 2, 1]);
    assert_eq!(bytes[2 * PAGE_BYTES..2 * PAGE_BYTES + 2], [1, 0]);
}

#[test]
fn a_full_disk_says_how_much_to_free() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&[BYTES]).unwrap();
    // With all of the image's space reserved it is the journal's that is missing.
    for (sparse, bytes) in [(true, BYTES), (false, room(&layout))] {
        let staging = folder(dir.path()).sparse(sparse).create(&name(), ID, layout.clone()).unwrap();
        let text = staging.no_write(&io::Error::from(io::ErrorKind::StorageFull), 0).to_string();
        assert!(text.contains("no space left in") && text.contains(&format!("free {bytes} bytes")), "{text}");
        staging.discard();
    }
}

#[test]
fn the_space_of_a_journal_is_taken_with_that_of_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&[256 << 20]).unwrap();
    let offer = Offer {
        transfer: ID,
        epoch: FenceEpoch(1),
        kind: GuestKind::Image,
        name: name(),
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout: layout.clone(),
    };
    let used = || dir.path().join(journal_name(ID)).metadata().unwrap().blocks() * 512;
    for (sparse, least) in [(true, 0), (false, room(&layout))] {
        let folder = folder(dir.path()).sparse(sparse);
        let staging = folder.go_on(&offer, Fingerprint([0; 32]), |_| false).unwrap();
        assert!(used() >= least && (least > 0 || used() < room(&layout)), "sparse {sparse}: {}", used());
        staging.park();
        drop(staging);
        // One that is gone on with has it, too.
        let staging = folder.go_on(&offer, Fingerprint([0; 32]), |_| false).unwrap();
        assert!(used() >= least, "sparse {sparse}: {}", used());
        staging.discard();
    }
}

#[test]
fn a_directory_that_is_none_or_an_exchanged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let open = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
    assert!(open(&file).contains("Not a directory"));
    assert!(open(&dir.path().join("none")).contains("No such file"));
    std::fs::create_dir(dir.path().join("vm1")).unwrap();
    assert!(create(dir.path(), true).unwrap_err().to_string().contains("is a directory"));
    std::fs::remove_dir(dir.path().join("vm1")).unwrap();

    let staging = create(dir.path(), false).unwrap();
    let part = dir.path().join(staging_name(ID));
    std::fs::remove_file(&part).unwrap();
    std::fs::write(&part, "not ours").unwrap();
    assert!(staging.resume().unwrap_err().to_string().contains("somebody else"));
    staging.discard();
    assert!(part.exists(), "what is not ours is not removed");
}

const PEER: Fingerprint = Fingerprint([3; 32]);

fn offer(transfer: u8) -> Offer {
    let layout = Layout::new(&[BYTES, 10 * PAGE]).unwrap();
    let transfer = TransferId([transfer; 16]);
    Offer {
        transfer,
        epoch: FenceEpoch(1),
        kind: GuestKind::Image,
        name: name(),
        dictionaries: Vec::new(),
        baselines: Vec::new(),
        layout,
    }
}

fn go_on(dir: &Path, offer: &Offer) -> ImageStaging {
    folder(dir).go_on(offer, PEER, |_| false).unwrap()
}

/// Writes a page as a lane does.
fn receive(staging: &ImageStaging, region: u16, page: u32, byte: u8) {
    let bytes = vec![byte; PAGE_BYTES];
    staging.write(RegionId(region), page, &bytes).unwrap();
    staging.written(RegionId(region), page, &[leaf(&bytes)]);
}

fn held(staging: &ImageStaging) -> Vec<(u16, u32, Digest)> {
    let mut held = Vec::new();
    staging.held(&mut |region, page, leaf| held.push((region.0, page, leaf)));
    held
}

fn byte(staging: &ImageStaging, region: u16, page: u32) -> u8 {
    let mut bytes = vec![0; PAGE_BYTES];
    staging.read(RegionId(region), page, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn what_was_durable_is_gone_on_with_and_all_else_is_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let first = go_on(dir.path(), &offer(1));
    for (region, page, byte) in [(0, 5, 1), (0, 6, 2), (1, 9, 3), (0, 5, 4)] {
        receive(&first, region, page, byte);
    }
    // Written, but the lane died before it could say so.
    first.write(RegionId(0), 20, &vec![7; PAGE_BYTES]).unwrap();
    // A page that was durable is being overwritten.
    first.write(RegionId(0), 6, &vec![8; PAGE_BYTES]).unwrap();
    drop(first);

    let second = go_on(dir.path(), &offer(2));
    let leaf = |byte| leaf(&[byte; PAGE_BYTES]);
    assert_eq!(held(&second), [(0, 5, leaf(4)), (1, 9, leaf(3))]);
    assert_eq!(second.held_bytes(), 2 * PAGE);
    let found = [(0, 5), (0, 6), (0, 20), (1, 9)].map(|(region, page)| byte(&second, region, page));
    assert_eq!(found, [4, 0, 0, 3]);
    receive(&second, 0, 6, 9);
    second.stage().unwrap();
    second.resume().unwrap();
    drop(second);
    assert_eq!(files(dir.path()), 1, "nothing but the image");
}

/// A peer chooses how many pieces there are, and each costs the disk as much as a hundred pages.
#[test]
fn holes_between_what_is_held_are_not_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = go_on(dir.path(), &offer(1));
    (0..40).step_by(2).for_each(|page| receive(&first, 0, page, 1));
    drop(first);
    // Whatever is done to its bytes or to its space tells another time.
    let path = |id| dir.path().join(staging_name(TransferId([id; 16])));
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let mark = |id| std::fs::File::options().write(true).open(path(id)).unwrap().set_modified(long_ago).unwrap();
    let is_touched = |id| path(id).metadata().unwrap().modified().unwrap() != long_ago;
    let check = |staging: &ImageStaging, when: &str| {
        for page in 0..70 {
            let expected = u8::from(page < 40 && page % 2 == 0);
            assert_eq!(byte(staging, 0, page), expected, "{when}, page {page}");
        }
        assert!(staging.lacks() == 0, "{when}: its space is reserved");
    };
    mark(1);
    let second = go_on(dir.path(), &offer(2));
    assert!(!is_touched(2), "nothing had to be done");
    check(&second, "as it was");

    // Few pages are overwritten, many become a hole, and its space is taken again.
    for (first, pages) in [(1, 1), (5, 1), (44, 2), (50, 20)] {
        second.file.write_at(first * PAGE, &vec![7; pages * PAGE_BYTES]).unwrap();
    }
    drop(second);
    mark(2);
    let third = go_on(dir.path(), &offer(3));
    assert!(is_touched(3));
    check(&third, "after a crash");
    drop(third);

    // What was given back is taken again.
    std::fs::File::options().write(true).open(path(3)).unwrap().set_len(0).unwrap();
    std::fs::File::options().write(true).open(path(3)).unwrap().set_len(offer(1).layout.bytes()).unwrap();
    let fourth = go_on(dir.path(), &offer(4));
    assert!(fourth.lacks() == 0);
}

#[test]
fn a_disk_that_lost_what_was_durable_is_noticed_before_anything_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let staging = go_on(dir.path(), &offer(1));
    receive(&staging, 0, 5, 1);
    receive(&staging, 0, 6, 2);
    drop(staging);
    let staging = go_on(dir.path(), &offer(2));
    staging.file.write_at(5 * PAGE, &[9]).unwrap();
    let error = staging.stage().unwrap_err().to_string();
    assert!(error.contains("lost what was durable") && error.contains("page 5"), "{error}");
    // What is written anew is not what is held.
    receive(&staging, 0, 5, 3);
    staging.stage().unwrap();
}

#[test]
fn only_the_same_image_of_the_same_peer_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let left = || {
        let staging = go_on(dir.path(), &offer(1));
        receive(&staging, 0, 5, 1);
        staging.park();
    };
    left();
    let layout = Layout::new(&[BYTES]).unwrap();
    let held_by = |offer: &Offer, peer, taken: bool| {
        let staging = folder(dir.path()).go_on(offer, peer, |_| taken).unwrap();
        let count = held(&staging).len();
        staging.discard();
        count
    };
    assert_eq!(held_by(&Offer { name: Name::new("vm2").unwrap(), ..offer(2) }, PEER, false), 0);
    assert_eq!(held_by(&Offer { layout, ..offer(2) }, PEER, false), 0);
    assert_eq!(held_by(&offer(2), Fingerprint([4; 32]), false), 0);
    assert_eq!(held_by(&offer(2), PEER, true), 0, "it is under way");
    assert_eq!(held_by(&offer(2), PEER, false), 1);
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn another_image_under_the_id_of_one_that_was_cut_off_is_its_own_peers_only() {
    let dir = tempfile::tempdir().unwrap();
    let staging = go_on(dir.path(), &offer(1));
    receive(&staging, 0, 5, 1);
    drop(staging);
    let grown = Offer { layout: Layout::new(&[BYTES + PAGE]).unwrap(), ..offer(1) };
    let theirs = folder(dir.path()).go_on(&grown, Fingerprint([4; 32]), |_| false);
    assert!(theirs.unwrap_err().to_string().contains("another peer's"), "it is not theirs to throw away");
    assert!(held(&go_on(dir.path(), &grown)).is_empty());
    assert_eq!(files(dir.path()), 2, "what was there first is gone");
}

#[test]
fn a_damaged_journal_is_nothing_to_go_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let staging = go_on(dir.path(), &offer(1));
    receive(&staging, 0, 5, 1);
    drop(staging);
    let journal = dir.path().join(journal_name(TransferId([1; 16])));
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&journal, bytes).unwrap();
    assert!(held(&go_on(dir.path(), &offer(2))).is_empty());
    assert_eq!(files(dir.path()), 4, "a header that cannot be read may be anybody's: it is swept away in time");
}

#[test]
fn what_somebody_still_writes_to_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let old = go_on(dir.path(), &offer(1));
    receive(&old, 0, 5, 1);
    old.park();
    // A session that is over, one of whose threads is not: what it would still do, it does to another's image.
    for next in [1, 2] {
        let error = folder(dir.path()).go_on(&offer(next), PEER, |_| false).unwrap_err();
        assert!(matches!(error, GuestError::Busy { .. }), "{error}");
        assert_eq!(files(dir.path()), 2);
    }
    drop(old);
    assert_eq!(held(&go_on(dir.path(), &offer(2))).len(), 1);
}

#[test]
fn the_second_names_that_a_crash_left_are_of_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let old = go_on(dir.path(), &offer(1));
    receive(&old, 0, 5, 1);
    drop(old);
    let (one, two) = (TransferId([1; 16]), TransferId([2; 16]));
    for name in [staging_name, journal_name] {
        std::fs::hard_link(dir.path().join(name(one)), dir.path().join(name(two))).unwrap();
    }
    std::fs::write(dir.path().join(beside_name(TransferId([3; 16]))), "cut off").unwrap();
    let staging = go_on(dir.path(), &offer(3));
    assert_eq!((held(&staging).len(), files(dir.path())), (1, 2));
}

#[test]
fn what_cannot_be_read_just_now_stays() {
    let dir = tempfile::tempdir().unwrap();
    let old = go_on(dir.path(), &offer(1));
    receive(&old, 0, 5, 1);
    drop(old);
    let one = TransferId([1; 16]);
    for name in [staging_name(one), journal_name(one)] {
        for next in [1, 2] {
            let stingy = Stingy { disk: Disk::open(dir.path()).unwrap(), name: name.clone(), code: 24 };
            let error =
                ImageFolder::over(Arc::new(stingy)).go_on(&offer(next), PEER, |_| false).unwrap_err().to_string();
            assert!(error.contains("dwcp transfers abort") && files(dir.path()) == 2, "{error}");
        }
    }
    assert_eq!(held(&go_on(dir.path(), &offer(2))).len(), 1);
}

#[test]
fn a_journal_that_a_disk_does_not_read_keeps_no_other_image_out() {
    let dir = tempfile::tempdir().unwrap();
    drop(go_on(dir.path(), &offer(1)));
    let name = journal_name(TransferId([1; 16]));
    let stingy = || Arc::new(Stingy { disk: Disk::open(dir.path()).unwrap(), name: name.clone(), code: 5 });
    let other = Offer { name: Name::new("vm2").unwrap(), ..offer(2) };
    drop(ImageFolder::over(stingy()).go_on(&other, PEER, |_| false).unwrap());
    assert_eq!(files(dir.path()), 4, "and it stays");
    let own = ImageFolder::over(stingy()).go_on(&offer(1), PEER, |_| false).unwrap_err().to_string();
    assert!(own.contains("dwcp transfers abort") && files(dir.path()) == 4, "{own}");
}

#[test]
fn going_on_keeps_the_space_of_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let old = go_on(dir.path(), &offer(1));
    receive(&old, 0, 5, 1);
    drop(old);
    let path = dir.path().join(journal_name(TransferId([1; 16])));
    let before = std::fs::metadata(&path).unwrap();
    drop(folder(dir.path()).sparse(true).go_on(&offer(1), PEER, |_| false).unwrap());
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!((after.len(), after.blocks()), (before.len(), before.blocks()), "without being taken again");
}

#[test]
fn what_is_under_way_is_marked_and_only_what_was_cut_off_is_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, id) = (folder(dir.path()), TransferId([1; 16]));
    let staging = go_on(dir.path(), &offer(1));
    receive(&staging, 0, 5, 1);
    let busy = || folder.parked().unwrap().iter().map(|parked| (parked.transfer, parked.busy)).collect::<Vec<_>>();
    assert_eq!(busy(), [(id, true)]);
    assert!(!folder.abort(id).unwrap());
    drop(staging);
    let parked = folder.parked().unwrap();
    assert_eq!((busy(), parked[0].held_bytes), (vec![(id, false)], PAGE));
    assert_eq!(parked[0].kept_until(), parked[0].written + PARKED_KEPT);
    // Taken up again: by whatever name it is the same file.
    let staging = go_on(dir.path(), &offer(2));
    assert_eq!(busy(), [(TransferId([2; 16]), true)]);
    drop(staging);
    assert!(folder.abort(TransferId([2; 16])).unwrap() && folder.abort(id).unwrap());
    assert_eq!((busy(), files(dir.path())), (vec![], 0));
}

#[test]
fn nothing_is_promised_of_a_staging_file_that_was_removed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let staging = go_on(dir.path(), &offer(1));
    receive(&staging, 0, 5, 1);
    std::fs::remove_file(dir.path().join(staging_name(TransferId([1; 16])))).unwrap();
    let error = staging.stage().unwrap_err().to_string();
    assert!(error.contains("was removed by somebody else"), "{error}");
}

#[test]
fn parked_transfers_are_swept_after_a_day() {
    let dir = tempfile::tempdir().unwrap();
    drop(go_on(dir.path(), &offer(1)));
    let written = std::fs::metadata(dir.path().join(journal_name(TransferId([1; 16])))).unwrap().modified().unwrap();
    let sweep = |after| folder(dir.path()).sweep(written + after, |_| false).unwrap();
    assert_eq!(sweep(Duration::from_secs(3600)), Swept { removed: vec![], parked: vec![TransferId([1; 16])] });
    assert_eq!(sweep(PARKED_KEPT + Duration::from_secs(1)).removed.len(), 2);
    assert_eq!(files(dir.path()), 0);
}

#[test]
fn leftovers_are_swept_unless_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let layout = || Layout::new(&[BYTES]).unwrap();
    let wanted = TransferId([8; 16]);
    create(dir.path(), false).unwrap();
    folder(dir.path()).create(&Name::new("vm2").unwrap(), wanted, layout()).unwrap();
    std::fs::write(dir.path().join(".dwcp-mine.part"), "x").unwrap();
    let removed = folder(dir.path()).sweep(SystemTime::UNIX_EPOCH, |transfer| transfer == wanted).unwrap();
    assert_eq!(removed, Swept { removed: vec![staging_name(ID)], parked: vec![] });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// An operator aborts one at that moment.
#[test]
fn a_sweep_goes_on_when_somebody_else_removed_what_it_is_at() {
    let dir = tempfile::tempdir().unwrap();
    for id in 1..=8 {
        drop(go_on(dir.path(), &Offer { name: Name::new(&format!("vm{id}")).unwrap(), ..offer(id) }));
    }
    let written = std::fs::metadata(dir.path().join(journal_name(TransferId([8; 16])))).unwrap().modified().unwrap();
    let aborted = Cell::new(None);
    let sweep = |transfer| {
        if aborted.get().is_none() {
            folder(dir.path()).remove(transfer);
            aborted.set(Some(transfer));
        }
        false
    };
    let swept = folder(dir.path()).sweep(written + PARKED_KEPT * 2, sweep).unwrap();
    assert_eq!((swept.removed.len(), files(dir.path())), (14, 0));
    let gone = aborted.get().unwrap().to_string();
    assert!(swept.removed.iter().all(|file| !file.contains(&gone)), "{swept:?}");
}
