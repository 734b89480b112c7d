use std::sync::atomic::AtomicU32;
use std::thread;

use super::front::Front;
use super::*;
use crate::baseline::{BaselineStore, Limits, StoreKey};
use crate::guest::Memory;
use crate::session::leaves::leaf;
use crate::wire::Name;

const R0: RegionId = RegionId(0);
const PAGES: u32 = 200;

fn page(number: u32, version: u8) -> Vec<u8> {
    let mut page = vec![version; PAGE_BYTES];
    page[..4].copy_from_slice(&number.to_le_bytes());
    page
}

/// A guest in memory that holds some pages already and counts what is written.
struct Counted {
    memory: Memory,
    held: Vec<u32>,
    written: AtomicU32,
    noted: AtomicU32,
    full: AtomicBool,
}

impl Counted {
    fn new(pages: u32, held: &[u32]) -> Arc<Self> {
        let memory = Memory::new(Layout::new(&[u64::from(pages) * 4096]).unwrap());
        for &number in held {
            memory.write(R0, number, &page(number, 9)).unwrap();
        }
        let held = held.to_vec();
        let (written, noted) = (AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Self { memory, held, written, noted, full: AtomicBool::new(false) })
    }

    fn at(&self, number: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        self.memory.read(R0, number, &mut bytes).unwrap();
        bytes
    }
}

impl Guest for Counted {
    fn layout(&self) -> &Layout {
        self.memory.layout()
    }
    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        self.memory.read(region, first, into)
    }
    fn write(&self, region: RegionId, first: u32, from: &[u8]) -> Result<(), GuestError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(GuestError::Other("no space left".into()));
        }
        self.written.fetch_add(u32::try_from(from.len() / PAGE_BYTES).unwrap(), Ordering::SeqCst);
        self.memory.write(region, first, from)
    }
    fn written(&self, _: RegionId, first: u32, leaves: &[Digest]) {
        for (number, told) in (first..).zip(leaves) {
            assert_eq!(leaf(&self.at(number)), *told, "page {number} is told to be another");
        }
        self.noted.fetch_add(u32::try_from(leaves.len()).unwrap(), Ordering::SeqCst);
    }
    fn held(&self, tell: &mut dyn FnMut(RegionId, u32, Digest)) {
        self.held.iter().for_each(|&number| tell(R0, number, leaf(&self.at(number))));
    }
    fn clear(&self) -> Result<(), GuestError> {
        self.memory.clear()
    }
}

/// A store with a baseline of so many pages, each other one with zeros in it.
struct Shelf {
    dir: tempfile::TempDir,
    baseline: Arc<Baseline>,
}

impl Shelf {
    fn new(numbers: impl IntoIterator<Item = u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = BaselineStore::make(dir.path(), StoreKey::new(&[5; 32]), Limits::default()).unwrap();
        let guest = Memory::new(Layout::new(&[u64::from(PAGES) * 4096]).unwrap());
        numbers.into_iter().for_each(|number| guest.write(R0, number, &page(number, 1)).unwrap());
        let tenant = Name::new("t").unwrap();
        let added = store.add(&tenant, &Name::new("golden").unwrap(), &guest, &mut |_| {}).unwrap();
        Self { dir, baseline: Arc::new(store.baseline(&tenant, added.digest).unwrap()) }
    }

    fn over(&self, guest: &Arc<Counted>) -> Laying {
        Laying::over_behind(Front::at_once(), Arc::<Counted>::clone(guest), Arc::clone(&self.baseline))
    }

    fn pack(&self) -> std::path::PathBuf {
        let mut files = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|ending| ending == "pack")).unwrap()
    }

    /// Changes a bit in the middle of the pages.
    fn rot(&self) {
        let pack = self.pack();
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(pack, bytes).unwrap();
    }

    /// What is behind the middle can no longer be read.
    fn cut(&self) {
        let pack = std::fs::File::options().write(true).open(self.pack()).unwrap();
        pack.set_len(pack.metadata().unwrap().len() / 2).unwrap();
    }
}

fn read(laying: &Laying, number: u32) -> Result<Vec<u8>, GuestError> {
    let mut bytes = vec![0; PAGE_BYTES];
    laying.read(R0, number, &mut bytes).map(|()| bytes)
}

// spec: O-9
#[test]
fn every_page_is_the_baselines_from_the_start_and_in_its_place_when_it_is_staged() {
    let shelf = Shelf::new((0..PAGES).filter(|number| number % 2 == 0));
    let guest = Counted::new(PAGES, &[4, 5, 80]);
    let laying = shelf.over(&guest);
    // Of the hundred that are not zeros two are held from before, and stay what they are.
    assert_eq!(laying.pages(), 98);
    let expected = |number: u32| match number {
        4 | 5 | 80 => page(number, 9),
        number if number % 2 == 0 => page(number, 1),
        _ => vec![0; PAGE_BYTES],
    };
    let mut all = vec![0; 200 * PAGE_BYTES];
    for stage in [false, true] {
        if stage {
            laying.stage().unwrap();
        }
        laying.read(R0, 0, &mut all).unwrap();
        for (number, bytes) in (0..).zip(all.chunks(PAGE_BYTES)) {
            assert_eq!(bytes, expected(number), "page {number}");
        }
        let laid = if stage { 98 } else { 0 };
        assert_eq!((guest.written.load(Ordering::SeqCst), guest.noted.load(Ordering::SeqCst)), (laid, laid));
    }
    (0..PAGES).for_each(|number| assert_eq!(guest.at(number), expected(number)));
    laying.stage().unwrap();
    assert_eq!(guest.written.load(Ordering::SeqCst), 98, "once is enough");
}

// spec: O-9
#[test]
fn a_page_that_was_replaced_is_never_laid() {
    let shelf = Shelf::new(0..PAGES);
    let guest = Counted::new(PAGES, &[]);
    let laying = shelf.over(&guest);
    let new: Vec<u8> = (60..70).flat_map(|number| page(number, 2)).collect();
    laying.write(R0, 60, &new).unwrap();
    laying.written(R0, 60, &(60..70).map(|number| leaf(&page(number, 2))).collect::<Vec<_>>());
    while laying.step().unwrap() {}
    assert_eq!(guest.written.load(Ordering::SeqCst), PAGES, "each page once");
    for number in 0..PAGES {
        let version = if (60..70).contains(&number) { 2 } else { 1 };
        assert_eq!(guest.at(number), page(number, version), "page {number}");
    }
    // And one that was laid is replaced as ever.
    laying.write(R0, 3, &page(3, 2)).unwrap();
    assert_eq!(read(&laying, 3).unwrap(), page(3, 2));
}

// spec: O-9
#[test]
fn lanes_and_the_background_never_undo_each_other() {
    let shelf = Shelf::new(0..PAGES);
    for turn in 0..100_u32 {
        let guest = Counted::new(PAGES, &[]);
        let laying = shelf.over(&guest);
        laying.begin().unwrap();
        thread::scope(|scope| {
            for lane in 0..2 {
                let laying = &laying;
                scope.spawn(move || {
                    for number in (0..PAGES).filter(|number| number % 2 == lane && number * 7 % 5 != turn % 5) {
                        // A delta is applied to what was there.
                        assert_eq!(read(laying, number).unwrap(), page(number, 1));
                        laying.write(R0, number, &page(number, 2)).unwrap();
                        assert_eq!(read(laying, number).unwrap(), page(number, 2));
                    }
                });
            }
        });
        laying.stage().unwrap();
        for number in 0..PAGES {
            let version = if number * 7 % 5 == turn % 5 { 1 } else { 2 };
            assert_eq!(guest.at(number), page(number, version), "turn {turn}, page {number}");
        }
    }
}

// spec: O-9
#[test]
fn a_page_that_is_rotten_or_cannot_be_read_is_named_and_nothing_is_staged() {
    let [rot, cut]: [fn(&Shelf); 2] = [Shelf::rot, Shelf::cut];
    for (early, spoil) in [(true, rot), (false, rot), (true, cut), (false, cut)] {
        let shelf = Shelf::new(0..PAGES);
        spoil(&shelf);
        let guest = Counted::new(PAGES, &[]);
        let laying = shelf.over(&guest);
        let rotten = (0..PAGES).find(|&number| shelf.baseline.read(R0, number, &mut [0; PAGE_BYTES]).is_err()).unwrap();
        assert_eq!(read(&laying, 0).unwrap(), page(0, 1), "others are whole");
        let error = if early { read(&laying, rotten).map(drop) } else { laying.stage() }.unwrap_err();
        assert!(
            matches!(&error, GuestError::Baseline { digest, page, region: R0, .. }
                if *page == rotten && digest.0 == shelf.baseline.digest().0),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("page {rotten} of baseline golden")), "{text}");
        // Whoever comes later is told the same.
        assert_eq!(laying.write(R0, 199, &page(199, 2)).unwrap_err().to_string(), text);
        assert_eq!(laying.stage().unwrap_err().to_string(), text);
    }
}

#[test]
fn a_guest_that_cannot_be_written_ends_the_laying() {
    let shelf = Shelf::new(0..PAGES);
    let guest = Counted::new(PAGES, &[]);
    let laying = shelf.over(&guest);
    guest.full.store(true, Ordering::SeqCst);
    assert!(laying.stage().unwrap_err().to_string().contains("no space left"));
    assert!(laying.write(R0, 1, &page(1, 2)).unwrap_err().to_string().contains("no space left"));
}

// spec: V-5
#[test]
fn what_is_cleared_is_zeros_and_stays_so() {
    let shelf = Shelf::new(0..PAGES);
    let guest = Counted::new(PAGES, &[]);
    let laying = shelf.over(&guest);
    laying.begin().unwrap();
    laying.clear().unwrap();
    laying.write(R0, 7, &page(7, 2)).unwrap();
    laying.stage().unwrap();
    for number in 0..PAGES {
        let expected = if number == 7 { page(7, 2) } else { vec![0; PAGE_BYTES] };
        assert_eq!((guest.at(number), read(&laying, number).unwrap()), (expected.clone(), expected), "page {number}");
    }
}

#[test]
fn what_was_thrown_away_is_not_staged() {
    let shelf = Shelf::new(0..PAGES);
    let guest = Counted::new(PAGES, &[]);
    let laying = shelf.over(&guest);
    laying.discard();
    assert!(laying.stage().is_err());
    assert_eq!(guest.written.load(Ordering::SeqCst), 0);
}

// spec: O-9
#[test]
fn of_another_layout_only_whole_pages_at_the_same_place_are_taken() {
    let shelf = Shelf::new(0..PAGES);
    let memory: Arc<dyn Guest> = Arc::new(Memory::new(Layout::new(&[2 * 4096 + 100, 4096]).unwrap()));
    let laying = Laying::over_behind(Front::at_once(), Arc::clone(&memory), Arc::clone(&shelf.baseline));
    assert_eq!(laying.pages(), 2);
    assert_eq!(laying.held(0).leaves.get(FlatPage(1)), leaf(&page(1, 1)));
    laying.stage().unwrap();
    let mut bytes = vec![1; 3 * PAGE_BYTES];
    memory.read(R0, 0, &mut bytes).unwrap();
    assert_eq!(bytes[..2 * PAGE_BYTES], [page(0, 1), page(1, 1)].concat());
    assert!(bytes[2 * PAGE_BYTES..].iter().all(|byte| *byte == 0), "a page that is cut off is not the same");
}

#[test]
fn masks_and_runs_are_of_the_same_bits() {
    assert_eq!([mask(0..64), mask(3..3), mask(0..1), mask(63..64)], [u64::MAX, 0, 1, 1 << 63]);
    for bits in [0, 1, u64::MAX, 1 << 63, 0xf0f0, 0x8000_0000_0000_0001] {
        assert_eq!(runs_of(bits).fold(0, |all, run| all | mask(run)), bits);
    }
    assert_eq!(runs_of(0b1_0110).collect::<Vec<_>>(), [1..3, 4..5]);
}

// spec: H-11
#[test]
fn of_a_guest_that_is_larger_only_what_the_baseline_has_is_kept_account_of() {
    let shelf = Shelf::new(0..PAGES);
    let guest = Counted::new(PAGES * 10, &[PAGES * 9]);
    let laying = shelf.over(&guest);
    let groups = usize::try_from(PAGES.div_ceil(GROUP)).unwrap();
    assert_eq!([laying.shared.claimed.len(), laying.shared.laid.len()], [groups; 2]);
    laying.write(R0, PAGES - 1, &[page(PAGES - 1, 2), page(PAGES, 2)].concat()).unwrap();
    laying.stage().unwrap();
    for (number, version) in [(0, 1), (PAGES - 1, 2), (PAGES, 2), (PAGES * 9, 9)] {
        assert_eq!(read(&laying, number).unwrap(), page(number, version), "page {number}");
    }
    assert_eq!(read(&laying, PAGES * 5).unwrap(), vec![0; PAGE_BYTES]);
}
