//! The body of the fuzz target for a store of baselines: bytes that a disk brought back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use dwcp_core::Layout;
use dwcp_core::baseline::{BaselineStore, Draft, Limits, StoreKey};
use dwcp_core::guest::{Guest, Memory};
use dwcp_core::storage::{File, Folder, Stat};
use dwcp_core::wire::Name;
use dwcp_core::{PAGE_BYTES, RegionId};

/// Pages of the largest layout that is taken: a larger one would cost a run its memory, not find more.
const MOST_PAGES: u64 = 1 << 12;

/// Bytes of a store: of a manifest's plain segments (each behind its length) if the first byte is even, else in place of a part
/// of one of the files of a whole store. They are refused, or mean one thing, or change nothing that is believed.
pub fn check_baseline(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind % 2 == 0 { check_segments(rest) } else { check_files(rest) }
}

fn check_segments(data: &[u8]) {
    let mut segments = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (segment, after) = after.split_at(length);
        segments.push(segment.to_vec());
        rest = after;
    }
    let Some((first, pages)) = segments.split_first() else { return };
    let Ok(mut draft) = Draft::begin(first, MOST_PAGES) else { return };
    if pages.iter().any(|segment| draft.take(segment).is_err()) {
        return;
    }
    let Ok(manifest) = draft.finish() else { return };
    let mut again = Vec::new();
    let put = manifest.encode::<()>(&mut |segment, _| {
        again.push(segment);
        Ok(())
    });
    put.unwrap();
    let (first, pages) = again.split_first().unwrap();
    let mut draft = Draft::begin(first, MOST_PAGES).unwrap();
    pages.iter().for_each(|segment| draft.take(segment).unwrap());
    assert_eq!(draft.finish().unwrap().about(), manifest.about(), "what was read cannot be written");
}

fn check_files(data: &[u8]) {
    let Some((head, bytes)) = data.split_first_chunk::<4>() else { return };
    let [file, low, high, cut] = *head;
    let mut files = whole_store().clone();
    let place = usize::from(file) % files.len();
    let content = files.values_mut().nth(place).unwrap();
    let whole = content.clone();
    let at = usize::from(u16::from_le_bytes([low, high])) % content.len();
    let end = (at + bytes.len()).min(content.len());
    content[at..end].copy_from_slice(&bytes[..end - at]);
    if cut % 4 == 3 {
        content.truncate(end);
    }
    let same = *content == whole;
    let shelf = files.into_iter().map(|(name, bytes)| (name, Arc::new(Mutex::new(bytes)))).collect();
    read_store(Arc::new(Shelf(Mutex::new(shelf))), same);
}

/// Every page that can be read is the one that was stored, and all can when nothing was changed.
fn read_store(shelf: Arc<Shelf>, same: bool) {
    let Ok(store) = BaselineStore::over(shelf, key(), limits()) else { return assert!(!same) };
    let Ok(listing) = store.list() else { return assert!(!same) };
    assert!(!same || listing.baselines.len() == 1);
    for summary in &listing.baselines {
        let Ok(baseline) = store.look_into(summary) else { return assert!(!same) };
        let mut page = [0; PAGE_BYTES];
        for number in 0..PAGES {
            let read = baseline.read(RegionId(0), number, &mut page);
            assert!(read.is_err() || page == bytes_of(number), "damage is believed");
            assert!(read.is_ok() || !same);
        }
    }
}

/// Two chunks.
const PAGES: u32 = 70;

fn bytes_of(page: u32) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    bytes[..4].copy_from_slice(&page.wrapping_mul(7919).to_le_bytes());
    bytes
}

fn key() -> StoreKey {
    StoreKey::new(&[3; 32])
}

fn limits() -> Limits {
    Limits { pages: MOST_PAGES, ..Limits::default() }
}

/// The files of a store with one baseline.
fn whole_store() -> &'static BTreeMap<String, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let shelf = Arc::new(Shelf::default());
        let folder: Arc<dyn Folder> = Arc::<Shelf>::clone(&shelf);
        let store = BaselineStore::make_over(folder, key(), limits()).unwrap();
        let guest = Memory::new(Layout::new(&[u64::from(PAGES) * PAGE_BYTES as u64]).unwrap());
        (0..PAGES).for_each(|page| guest.write(RegionId(0), page, &bytes_of(page)).unwrap());
        let name = Name::new("fuzz").unwrap();
        store.with_salts_of(1).add(&name, &name, &guest, &mut |_| {}).unwrap();
        let files = shelf.0.lock().unwrap();
        files.iter().map(|(name, bytes)| (name.clone(), bytes.lock().unwrap().clone())).collect()
    })
}

/// A folder in memory, without any faults.
#[derive(Debug, Default)]
struct Shelf(Mutex<BTreeMap<String, Content>>);

type Content = Arc<Mutex<Vec<u8>>>;

#[derive(Debug)]
struct Kept(Content);

impl Folder for Shelf {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let found = self.0.lock().unwrap().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Kept(found)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.0.lock().unwrap().entry(name.to_owned()).or_default();
        self.open(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.open(name).map_or(Ok(None), |file| file.stat().map(Some))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.replace(from, to)
    }

    fn link(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for Kept {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..into.len()));
        from.map(|from| into.copy_from_slice(from)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let (at, mut bytes) = (at as usize, self.0.lock().unwrap());
        let end = bytes.len().max(at + from.len());
        bytes.resize(end, 0);
        bytes[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(bytes as usize, 0);
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let bytes = self.0.lock().unwrap().len() as u64;
        Ok(Stat::regular((0, 0), bytes, bytes, SystemTime::UNIX_EPOCH))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn wait_lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn share(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Seeds for the fuzzer: a manifest that is whole, and a change of each file.
pub fn baseline_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let shelf = whole_store().clone().into_iter().map(|(name, bytes)| (name, Arc::new(Mutex::new(bytes)))).collect();
    let store = BaselineStore::over(Arc::new(Shelf(Mutex::new(shelf))), key(), limits()).unwrap();
    let baseline = store.look_into(&store.list().unwrap().baselines[0]).unwrap();
    let mut segments = vec![0];
    let put = baseline.manifest().encode::<()>(&mut |segment, _| {
        segments.extend_from_slice(&(segment.len() as u16).to_le_bytes());
        segments.extend_from_slice(&segment);
        Ok(())
    });
    put.unwrap();
    vec![
        ("segments", segments),
        ("manifest", vec![1, 0, 60, 0, 0, 1, 2, 3, 4]),
        ("pack", vec![1, 1, 60, 0, 0, 1, 2, 3, 4]),
        ("header", vec![1, 2, 50, 0, 0, 1, 2, 3, 4]),
        ("cut", vec![1, 0, 100, 0, 3]),
        ("whole", vec![1, 0, 0, 0, 0]),
    ]
}
