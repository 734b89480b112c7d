use std::fs;
use std::path::Path;

use super::*;
use crate::extent::{Layout, PAGE_BYTES, RegionId};
use crate::guest::{Guest, Memory};
use crate::session::leaves::{Tree, leaf, zero_leaf};
use crate::wire::Name;

const R0: RegionId = RegionId(0);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key() -> StoreKey {
    StoreKey::new(&[5; 32])
}

fn store(dir: &Path) -> BaselineStore {
    BaselineStore::make(dir, key(), Limits::default()).unwrap()
}

/// Bytes that belong to one number: text that compresses, and a part that does not.
fn page(number: u64) -> Vec<u8> {
    let mut page = format!("page {number} of a guest. ").into_bytes().repeat(300);
    page.truncate(PAGE_BYTES);
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut page[..512]);
    page
}

/// A guest of one region for each list; a page for each number, 0 is zeros.
fn guest(regions: &[Vec<u64>]) -> Memory {
    let sizes: Vec<u64> = regions.iter().map(|pages| sealed::length(pages.len()) * 4096).collect();
    let guest = Memory::new(Layout::new(&sizes).unwrap());
    for (region, pages) in (0..).zip(regions) {
        for (at, number) in (0..).zip(pages).filter(|(_, number)| **number != 0) {
            guest.write(RegionId(region), at, &page(*number)).unwrap();
        }
    }
    guest
}

fn add(store: &BaselineStore, named: &str, pages: Vec<u64>) -> Added {
    store.add(&name("t"), &name(named), &guest(&[pages]), &mut |_| {}).unwrap()
}

/// Whether a baseline is this guest, page by page.
fn holds(baseline: &Baseline, guest: &Memory) -> bool {
    assert_eq!(baseline.layout(), guest.layout());
    guest.layout().regions().all(|(id, region)| {
        (0..region.pages).all(|at| {
            let (mut ours, mut theirs) = ([0; PAGE_BYTES], [1; PAGE_BYTES]);
            guest.read(id, at, &mut ours).unwrap();
            baseline.read(id, at, &mut theirs).unwrap();
            let expected = if ours == [0; PAGE_BYTES] { zero_leaf() } else { leaf(&ours) };
            ours == theirs && baseline.leaf(id, at) == Some(expected)
        })
    })
}

fn files(dir: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
}

#[test]
fn what_was_added_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest(&[(1..=200).chain([0; 70]).chain(5..9).collect(), vec![0, 300, 300, 0]]);
    let added = store(dir.path()).add(&name("t"), &name("vm"), &image, &mut |_| {}).unwrap();
    assert_eq!((added.pages, added.zero, added.known, added.stored), (278, 72, 0, 201));
    // Another process, that knows only the key.
    let store = BaselineStore::open(dir.path(), key(), Limits::default()).unwrap();
    let baseline = store.baseline(&name("t"), added.digest).unwrap();
    assert!(holds(&baseline, &image));
    let mut all = vec![0; 274 * PAGE_BYTES];
    baseline.read(R0, 0, &mut all).unwrap();
    assert_eq!(all[3 * PAGE_BYTES..][..PAGE_BYTES], page(4));
    assert_eq!(all[270 * PAGE_BYTES..][..PAGE_BYTES], page(5));
    assert_eq!(baseline.about().distinct, 201);
    assert!(matches!(baseline.read(R0, 274, &mut all[..PAGE_BYTES]), Err(BaselineError::Outside { page: 274, .. })));
    assert!(matches!(baseline.read(RegionId(2), 0, &mut all[..PAGE_BYTES]), Err(BaselineError::Outside { .. })));
}

#[test]
fn the_digest_is_that_of_the_root_with_which_a_transfer_ends() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest(&[vec![1, 0, 2]]);
    let leaves = crate::session::Leaves::new(image.layout());
    leaves.set(image.layout().flat(R0, 0).unwrap(), leaf(&page(1)));
    leaves.set(image.layout().flat(R0, 2).unwrap(), leaf(&page(2)));
    let root = Tree::new(image.layout()).root(&leaves);
    let added = store(dir.path()).add(&name("t"), &name("vm"), &image, &mut |_| {}).unwrap();
    assert_eq!(added.digest, key().digest(&name("t"), root));
}

#[test]
fn a_page_is_found_at_its_place_or_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let added = add(&store, "vm", vec![1, 2, 3, 2, 0]);
    let baseline = store.baseline(&name("t"), added.digest).unwrap();
    let two = leaf(&page(2));
    assert_eq!(baseline.find(two, Some((R0, 3))), Some((R0, 3)), "where it was asked for");
    assert_eq!(baseline.find(two, Some((R0, 0))), Some((R0, 1)), "elsewhere");
    assert_eq!(baseline.find(two, None), Some((R0, 1)));
    assert_eq!(baseline.find(leaf(&page(9)), None), None);
    assert_eq!(baseline.find(zero_leaf(), None), None);
    assert_eq!(baseline.find_like(&[0; 4096]), None);
}

#[test]
fn what_a_tenant_has_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    add(&store, "golden", (1..=500).collect());
    let moved = add(&store, "vm", (400..=900).chain(1..=3).collect());
    assert_eq!((moved.known, moved.stored), (101 + 3, 400));
    let image = guest(&[(400..=900).chain(1..=3).collect()]);
    assert!(holds(&store.baseline(&name("t"), moved.digest).unwrap(), &image));
    let other = store.add(&name("u"), &name("vm"), &image, &mut |_| {}).unwrap();
    assert_eq!((other.known, other.stored), (0, 504), "another tenant");
    assert_ne!(other.digest, moved.digest);
    assert!(matches!(store.baseline(&name("t"), other.digest), Err(BaselineError::Unknown { .. })));
}

#[test]
fn a_name_stands_for_what_was_added_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let old = add(&store, "vm", (1..=300).collect());
    let in_use = store.baseline(&name("t"), old.digest).unwrap();
    let new = add(&store, "vm", (200..=400).collect());
    let listing = store.list().unwrap();
    assert_eq!(listing.baselines.len(), 2, "the old one is in use");
    assert_eq!(listing.baselines[0].digest, new.digest, "the newest stands first");
    assert!(holds(&in_use, &guest(&[(1..=300).collect()])));
    drop(in_use);
    let collected = store.collect(&mut |_| false, None).unwrap();
    assert_eq!(collected.removed.len(), 1);
    assert!(collected.bytes < collected.bytes_before, "{collected:?}");
    assert!(holds(&store.baseline(&name("t"), new.digest).unwrap(), &guest(&[(200..=400).collect()])));
    assert!(store.baseline(&name("t"), old.digest).is_err());
    let again = add(&store, "vm", (200..=400).collect());
    assert_eq!((again.digest, again.stored), (new.digest, 0));
    assert_eq!(store.list().unwrap().baselines.len(), 1);
}

#[test]
fn a_limit_takes_those_that_were_used_longest_ago() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let all: Vec<Added> = (0..4)
        .map(|index| add(&store, &format!("vm{index}"), (index * 500 + 1..=index * 500 + 400).collect()))
        .collect();
    for (added, hours) in all.iter().zip([3, 9, 5, 7]) {
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - hours * 3600);
        for path in files(dir.path(), ".baseline")
            .iter()
            .filter(|path| path.to_str().unwrap().contains(&added.digest.to_string()))
        {
            fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        }
    }
    let one = store.list().unwrap().baselines[0].bytes;
    let pinned = store.look_into(&store.list().unwrap().baselines[3]).unwrap();
    let collected = store.collect(&mut |_| false, Some(one * 2 + one / 2)).unwrap();
    assert_eq!(collected.in_use.len(), 1, "vm3 was to go before vm2");
    let left: Vec<_> = store.list().unwrap().baselines.iter().map(|left| left.about.name.to_string()).collect();
    assert_eq!(left, ["vm0", "vm3"]);
    assert_eq!(pinned.verify(&mut |_| {}).unwrap(), 400);
}

#[test]
fn only_its_key_opens_a_store() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(BaselineStore::open(dir.path(), key(), Limits::default()), Err(BaselineError::NoStore)));
    add(&store(dir.path()), "vm", vec![1]);
    for make in [BaselineStore::open, BaselineStore::make] {
        let opened = make(dir.path(), StoreKey::new(&[6; 32]), Limits::default());
        assert!(matches!(opened, Err(BaselineError::WrongKey)), "{opened:?}");
    }
    let header = dir.path().join("store");
    let whole = fs::read(&header).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&header, damaged).unwrap();
        let opened = BaselineStore::open(dir.path(), key(), Limits::default());
        let format = (8..10).contains(&at);
        assert!(
            matches!(&opened, Err(BaselineError::DamagedHeader) if !format)
                || matches!(&opened, Err(BaselineError::Format { .. }) if format),
            "byte {at}: {opened:?}"
        );
    }
    fs::write(&header, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(store_at(dir.path()), Err(BaselineError::DamagedHeader)));
}

#[test]
fn a_header_that_is_gone_is_made_again_by_its_own_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    let added = add(&store(dir.path()), "vm", vec![1, 2, 3]);
    fs::remove_file(dir.path().join("store")).unwrap();
    let other = || StoreKey::new(&[6; 32]);
    for make in [BaselineStore::open, BaselineStore::make] {
        let refused = make(dir.path(), other(), Limits::default());
        assert!(matches!(refused, Err(BaselineError::NoneOpened)), "{refused:?}");
    }
    assert!(!dir.path().join("store").exists(), "nothing is made");
    assert!(matches!(store_at(dir.path()), Err(BaselineError::NoHeader)));
    assert!(store(dir.path()).baseline(&name("t"), added.digest).is_ok(), "all is there again");
    // One that cannot be read does not keep the others' key out.
    fs::remove_file(dir.path().join("store")).unwrap();
    fs::write(dir.path().join(format!("{}-{}.baseline", "00".repeat(32), "0".repeat(16))), [0; 9]).unwrap();
    assert!(store(dir.path()).baseline(&name("t"), added.digest).is_ok());
    // Packs alone are nobody's that shows.
    for file in ["store", ".baseline"].iter().flat_map(|ending| files(dir.path(), ending)) {
        fs::remove_file(file).unwrap();
    }
    let refused = BaselineStore::make(dir.path(), other(), Limits::default());
    assert!(matches!(refused, Err(BaselineError::NoneOpened)), "{refused:?}");
}

fn store_at(dir: &Path) -> Result<BaselineStore, BaselineError> {
    BaselineStore::open(dir, key(), Limits::default())
}

#[test]
fn nothing_of_a_guest_stands_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let marker = b"PLANTED-MARKER-OF-A-TENANT";
    let image = guest(&[(1..=40).collect()]);
    let mut secret: Vec<u8> = marker.repeat(200);
    secret.truncate(PAGE_BYTES);
    image.write(R0, 7, &secret).unwrap();
    // A page that no codec makes smaller, so that it stands in its chunk as it is.
    let mut noise = vec![0; 64 * PAGE_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise[..marker.len()].copy_from_slice(marker);
    let random = Memory::new(Layout::new(&[sealed::length(noise.len())]).unwrap());
    random.write(R0, 0, &noise).unwrap();
    store.add(&name("tenant-name"), &name("baseline-name"), &image, &mut |_| {}).unwrap();
    store.add(&name("tenant-name"), &name("random-pages"), &random, &mut |_| {}).unwrap();
    let planted: [&[u8]; 6] = [marker, &noise[100..132], b"tenant-name", b"baseline-name", &leaf(&secret).0, &[5; 32]];
    let mut bytes = 0;
    for path in files(dir.path(), "") {
        let file = fs::read(&path).unwrap();
        bytes += file.len();
        for secret in planted {
            assert!(!file.windows(secret.len()).any(|window| window == secret), "{secret:?} in {}", path.display());
            assert!(!path.to_str().unwrap().as_bytes().windows(secret.len()).any(|window| window == secret));
        }
    }
    assert!(bytes > noise.len(), "the pages are there");
}

#[test]
fn no_two_pieces_have_the_same_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    // The same pages each time, so that equal key and nonce would show as equal bytes.
    for tenant in ["a", "b", "c"] {
        store.add(&name(tenant), &name("vm"), &guest(&[vec![1; 1]]), &mut |_| {}).unwrap();
    }
    let packs: Vec<Vec<u8>> =
        files(dir.path(), ".pack").iter().map(|path| fs::read(path).unwrap()[42..].to_vec()).collect();
    assert_eq!(packs.len(), 3);
    assert!(packs[0] != packs[1] && packs[1] != packs[2] && packs[0] != packs[2]);
}

#[test]
fn a_flipped_bit_of_a_pack_is_told_with_its_page_and_healed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let pages: Vec<u64> = (1..=200).collect();
    let added = add(&store, "vm", pages.clone());
    let path = &files(dir.path(), ".pack")[0];
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
    let baseline = store.baseline(&name("t"), added.digest).unwrap();
    let mut damaged = Vec::new();
    let whole = baseline.verify(&mut |progress| {
        if let Progress::Damaged { region, page, error } = progress {
            assert!(error.is_damage() && region == R0, "{error}");
            damaged.push(page);
        }
    });
    // One chunk of 64 pages cannot be opened; all others are whole.
    assert_eq!((whole.unwrap(), damaged.len()), (200 - 64, 64));
    drop(baseline);
    let healed = add(&store, "vm", pages.clone());
    assert_eq!((healed.digest, healed.known, healed.stored), (added.digest, 136, 64));
    assert!(holds(&store.baseline(&name("t"), healed.digest).unwrap(), &guest(&[pages])));
}

#[test]
fn no_flipped_bit_of_a_manifest_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let added = add(&store, "vm", (1..=70).collect());
    let path = &files(dir.path(), ".baseline")[0];
    let whole = fs::read(path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(path, damaged).unwrap();
        let error = store.baseline(&name("t"), added.digest).unwrap_err();
        assert!(error.is_damage() || matches!(error, BaselineError::Format { .. }), "byte {at}: {error}");
    }
    for end in (0..whole.len()).step_by(7) {
        fs::write(path, &whole[..end]).unwrap();
        let error = store.baseline(&name("t"), added.digest).unwrap_err();
        assert!(error.is_damage(), "cut off at {end}: {error}");
    }
    // A listing reads no further than it must; what is damaged there is told, and a collection removes it with its pack.
    fs::write(path, &whole[..100]).unwrap();
    assert_eq!(store.list().unwrap().damaged.len(), 1);
    let collected = store.collect(&mut |_| false, None).unwrap();
    assert_eq!(collected.damaged.len(), 1);
    assert!(files(dir.path(), ".pack").is_empty() && files(dir.path(), ".baseline").is_empty());
}

#[test]
fn a_manifest_is_of_no_use_under_another_name_or_beside_other_packs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, other) = (add(&store, "one", vec![1]), add(&store, "other", vec![2]));
    let of = |digest: ManifestDigest| {
        let all = files(dir.path(), ".baseline");
        all.into_iter().find(|path| path.to_str().unwrap().contains(&digest.to_string())).unwrap()
    };
    fs::copy(of(one.digest), of(other.digest)).unwrap();
    let error = store.baseline(&name("t"), other.digest).unwrap_err();
    assert!(matches!(&error, BaselineError::Damaged { damage: Damage::Contents { .. }, .. }), "{error}");
    let packs = files(dir.path(), ".pack");
    fs::copy(&packs[0], &packs[1]).unwrap();
    fs::copy(&packs[1], &packs[0]).unwrap();
    let opened: Vec<bool> = [one, other].iter().map(|added| store.baseline(&name("t"), added.digest).is_ok()).collect();
    assert!(opened.iter().any(|whole| !whole), "{opened:?}");
}

#[test]
fn a_pack_that_is_missing_or_cut_off_is_told_when_the_baseline_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let added = add(&store, "vm", (1..=70).collect());
    let path = &files(dir.path(), ".pack")[0];
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() - 1]).unwrap();
    let error = store.baseline(&name("t"), added.digest).unwrap_err();
    assert!(matches!(&error, BaselineError::Damaged { damage: Damage::Truncated { .. }, .. }), "{error}");
    fs::remove_file(path).unwrap();
    let error = store.baseline(&name("t"), added.digest).unwrap_err();
    assert!(matches!(&error, BaselineError::Damaged { damage: Damage::Missing, .. }), "{error}");
    let healed = add(&store, "vm", (1..=70).collect());
    assert_eq!((healed.digest, healed.stored), (added.digest, 70));
    assert!(store.baseline(&name("t"), added.digest).is_ok());
}

#[test]
fn what_does_not_fit_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    add(&store(dir.path()), "vm", (1..=100).collect());
    let before: Vec<_> = files(dir.path(), "");
    let used = store(dir.path()).bytes().unwrap();
    for room in [0, 1000, 60_000, 120_000] {
        let limits = Limits { bytes: used + room, ..Limits::default() };
        let small = BaselineStore::open(dir.path(), key(), limits).unwrap();
        let error = small.add(&name("t"), &name("big"), &guest(&[(1000..=1400).collect()]), &mut |_| {}).unwrap_err();
        assert!(matches!(error, BaselineError::OverLimit { limit, .. } if limit == used + room), "{error}");
        assert_eq!(files(dir.path(), "").len(), before.len());
    }
    let limits = Limits { pages: 100, ..Limits::default() };
    let narrow = BaselineStore::open(dir.path(), key(), limits).unwrap();
    let error = narrow.add(&name("t"), &name("big"), &guest(&[vec![1; 100]]), &mut |_| {}).unwrap_err();
    assert!(matches!(error, BaselineError::TooLarge { pages: 100, most: 100 }), "{error}");
}

#[test]
fn a_guest_that_cannot_be_read_leaves_nothing_behind() {
    struct Torn(Memory);
    impl Guest for Torn {
        fn layout(&self) -> &Layout {
            self.0.layout()
        }
        fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), crate::GuestError> {
            match first {
                512.. => Err(crate::GuestError::Changed { what: "vm.mem".into() }),
                _ => self.0.read(region, first, into),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let torn = Torn(guest(&[(1..=600).collect()]));
    let error = store.add(&name("t"), &name("vm"), &torn, &mut |_| {}).unwrap_err();
    assert!(matches!(error, BaselineError::Guest(crate::GuestError::Changed { .. })), "{error}");
    assert_eq!(files(dir.path(), "").len(), 1, "only the header");
}

// spec: O-9
#[test]
fn the_first_of_several_digests_that_is_here_and_wanted_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let [a, b] = [("a", 1), ("b", 2)].map(|(named, number)| add(&store, named, vec![number, 7]).digest);
    let unknown = ManifestDigest([9; 32]);
    let first = |digests: &[ManifestDigest], not: &str| {
        let found = store.first_of(digests, &|about| about.name != name(not)).unwrap();
        found.map(|(number, baseline)| (number, baseline.digest()))
    };
    assert_eq!(first(&[unknown, b, a], "none"), Some((1, b)));
    assert_eq!(first(&[unknown, b, a], "b"), Some((2, a)));
    assert_eq!(first(&[unknown], "none"), None);
    // One that is damaged is none.
    let manifest =
        files(dir.path(), ".baseline").into_iter().find(|path| path.display().to_string().contains(&a.to_string()));
    fs::write(manifest.unwrap(), [0; 100]).unwrap();
    assert_eq!(first(&[a, b], "none"), Some((1, b)));
}

#[test]
fn what_a_transfer_ended_with_is_kept_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let old = add(&store, "vm", vec![1, 2, 3]);
    let arrived = guest(&[vec![1, 5, 3]]);
    let leaves = crate::session::Leaves::new(arrived.layout());
    for (at, number) in (0..).zip([1, 5, 3]) {
        leaves.set(crate::extent::FlatPage(at), leaf(&page(number)));
    }
    let root = Tree::new(arrived.layout()).root(&leaves);
    let keep = |guest: &Memory| store.keep(&name("t"), &name("vm"), guest, root, &mut |_| {});
    let error = keep(&guest(&[vec![1, 5, 4]])).unwrap_err();
    assert!(matches!(error, BaselineError::OtherRoot), "{error}");
    assert!(holds(&store.baseline(&name("t"), old.digest).unwrap(), &guest(&[vec![1, 2, 3]])), "nothing was replaced");
    let kept = keep(&arrived).unwrap();
    assert_eq!((kept.digest, kept.known, kept.stored), (store.digest(&name("t"), root), 2, 1));
}

#[test]
fn a_hundred_generations_stay_within_their_packs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for turn in 0..100_u64 {
        // One page changes each time.
        let pages: Vec<u64> = (1..=100).map(|page| if page <= turn { page + 1000 } else { page }).collect();
        let added = add(&store, "vm", pages.clone());
        assert!(added.stored <= 100);
        if turn % 20 == 19 {
            assert!(holds(&store.baseline(&name("t"), added.digest).unwrap(), &guest(&[pages])));
        }
    }
    assert!(files(dir.path(), ".pack").len() <= 64, "{}", files(dir.path(), ".pack").len());
    assert_eq!(files(dir.path(), ".baseline").len(), 1);
}

#[test]
fn two_processes_use_one_store_at_once() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let path = dir.path();
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            // Each has handles, and so locks, of its own, as another process has.
            scope.spawn(move || {
                let store = store_at(path).unwrap();
                for turn in 0..6 {
                    let pages: Vec<u64> = (1..=100).chain(worker * 1000 + turn..worker * 1000 + turn + 50).collect();
                    let added = add(&store, &format!("vm{worker}"), pages.clone());
                    let baseline = store.baseline(&name("t"), added.digest).unwrap();
                    store.collect(&mut |_| false, None).unwrap();
                    assert!(holds(&baseline, &guest(&[pages])));
                }
            });
        }
    });
    let listing = store_at(path).unwrap().list().unwrap();
    assert_eq!((listing.baselines.len(), listing.damaged.len()), (4, 0));
    assert!(listing.baselines.iter().all(|one| one.own_bytes <= one.bytes));
}

mod unreadable;

mod segments {
    use proptest::prelude::*;

    use super::*;
    use crate::baseline::likeness::{Sketch, Sketches};
    use crate::baseline::manifest::{Chunk, Parts, Place, Places};
    use crate::session::Leaves;

    fn manifest(sizes: &[u64], pages: &[(u32, u8)]) -> Manifest {
        let layout = Layout::new(sizes).unwrap();
        let (leaves, mut places, mut sketches) = (Leaves::new(&layout), Places::new(&layout), Sketches::new(&layout));
        for (at, slot) in pages {
            let flat = crate::extent::FlatPage(at % layout.flat_pages());
            if layout.locate(flat).is_some() {
                leaves.set(flat, leaf(&at.to_le_bytes()));
                places.set(flat, Place { chunk: u32::from(slot % 2), slot: *slot });
                sketches.set(flat, Sketch([*at, at.wrapping_add(1), at.wrapping_add(2), u32::MAX]));
            }
        }
        let chunk = |pack| Chunk { pack, at: 42, bytes: 5000, pages: 256 };
        Manifest::new(Parts {
            tenant: name("t"),
            name: name("vm"),
            generation: 3,
            layout,
            distinct: 1,
            packs: vec![[1; 32], [2; 32]],
            chunks: if pages.len() < 2 { Vec::new() } else { vec![chunk(0), chunk(1)] },
            leaves,
            places,
            sketches,
        })
    }

    fn encode(manifest: &Manifest) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        manifest
            .encode::<()>(&mut |segment, _| {
                segments.push(segment);
                Ok(())
            })
            .unwrap();
        segments
    }

    fn decode(segments: &[Vec<u8>]) -> Result<Manifest, Damage> {
        let (first, rest) = segments.split_first().unwrap();
        let mut draft = Draft::begin(first, 1 << 20)?;
        rest.iter().try_for_each(|segment| draft.take(segment))?;
        draft.finish()
    }

    proptest! {
        #[test]
        fn a_manifest_has_one_form(
            sizes in proptest::collection::vec(1_u64..2_000_000, 1..5),
            pages in proptest::collection::btree_map(any::<u32>(), any::<u8>(), 2..400),
        ) {
            let pages: Vec<_> = pages.into_iter().collect();
            let segments = encode(&manifest(&sizes, &pages));
            match decode(&segments) {
                Ok(read) => {
                    prop_assert_eq!(encode(&read), segments);
                }
                // Chunks without a page are refused where no page fell into the layout.
                Err(damage) => {
                    let contents = matches!(damage, Damage::Contents { .. });
                    prop_assert!(contents, "{}", damage);
                }
            }
        }

        #[test]
        fn damaged_segments_are_refused_or_mean_the_same(
            at in any::<prop::sample::Index>(),
            segment in 0_usize..3,
            bit in 0_u8..8,
        ) {
            let mut segments = encode(&manifest(&[400_000], &[(1, 1), (2, 2), (70, 3)]));
            let bytes = &mut segments[segment];
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(read) = decode(&segments) {
                prop_assert_eq!(encode(&read), segments, "two forms of one manifest");
            }
        }
    }

    #[test]
    fn claims_take_no_memory() {
        let huge = encode(&manifest(&[4096 << 21], &[]));
        assert!(Draft::begin(&huge[0], 1 << 20).is_err(), "more pages than are taken");
    }
}
