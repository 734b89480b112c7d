use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::source::ImageFile;
use crate::extent::{Layout, PAGE_BYTES, RegionId};
use crate::guest::{DirtyMap, Guest, GuestError, Pending};

/// Successive snapshots of one guest, sent as the dirty rounds that they are: the first one whole,
/// then what differs from one to the next. What arrives is the last one.
///
/// ```text
///  harvest   at the start   1st          2nd          3rd
///  current   t0             t0 -> t1     t1 -> t2     t2
///  marks     -              t0 != t1     t1 != t2     -
///  pending   More           More         Unknown      Unknown
/// ```
///
/// A page still in flight from the snapshot before is read again from the present one if the two
/// differ there, so the order of reads and harvests does not matter.
#[derive(Debug)]
pub struct Rounds {
    images: Vec<ImageFile>,
    layout: Layout,
    /// Index of the snapshot that is read. Only `harvest` moves it.
    current: AtomicUsize,
    /// The harvest at the start, which comes before anything is read, has been answered.
    begun: AtomicBool,
}

/// Pages compared at a time: one word of the dirty map.
const CHUNK_PAGES: u32 = 64;

impl Rounds {
    /// Opens snapshots, oldest first.
    ///
    /// # Errors
    /// There is none, one cannot be opened (see [`super::ImageSource::open`]), or sizes differ.
    pub fn open(paths: &[PathBuf]) -> Result<Self, GuestError> {
        let images = paths.iter().map(|path| ImageFile::open(path.clone())).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = images.first() else { return Err(GuestError::Other("no snapshot is named".into())) };
        if let Some(other) = images.iter().find(|image| image.bytes() != first.bytes()) {
            return Err(GuestError::Other(format!(
                "{} has {} bytes and {} has {}: snapshots of one guest have one size",
                first.path().display(),
                first.bytes(),
                other.path().display(),
                other.bytes()
            )));
        }
        let layout = first.layout()?;
        Ok(Self { images, layout, current: AtomicUsize::new(0), begun: AtomicBool::new(false) })
    }

    /// Begins with the last snapshot, which alone is to arrive: for a sender that was cut off, whose receiver may hold pages
    /// of any of them. Those of an earlier one would take their place, and travel for nothing.
    #[must_use]
    pub fn from_the_last(self) -> Self {
        self.current.store(self.images.len().saturating_sub(1), Ordering::Release);
        self
    }

    fn current(&self) -> Result<&ImageFile, GuestError> {
        let index = self.current.load(Ordering::Acquire);
        self.images.get(index).ok_or_else(|| GuestError::Other("no snapshot is named".into()))
    }

    fn pending(&self, current: usize) -> Pending {
        if current + 1 < self.images.len() { Pending::More } else { Pending::Unknown }
    }
}

impl Guest for Rounds {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, region: RegionId, first: u32, into: &mut [u8]) -> Result<(), GuestError> {
        if region != RegionId(0) {
            return Err(GuestError::Outside { region, first });
        }
        self.current()?.read(first, into)
    }

    fn harvest(&self, dirty: &mut DirtyMap) -> Result<Pending, GuestError> {
        let current = self.current.load(Ordering::Acquire);
        let now = self.current()?;
        if !self.begun.swap(true, Ordering::AcqRel) {
            return Ok(self.pending(current));
        }
        let Some(next) = self.images.get(current + 1) else {
            now.verify()?;
            return Ok(Pending::Unknown);
        };
        mark_differences(now, next, dirty)?;
        self.current.store(current + 1, Ordering::Release);
        Ok(self.pending(current + 1))
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.current()?.verify()
    }
}

/// Marks the pages in which two images of one size differ. Holes of both are not read. Each read
/// checks its file, so that neither can have changed up to here.
fn mark_differences(old: &ImageFile, new: &ImageFile, dirty: &mut DirtyMap) -> Result<(), GuestError> {
    let pages = u32::try_from(old.bytes().div_ceil(4096)).unwrap_or(u32::MAX);
    let most = usize::try_from(CHUNK_PAGES).unwrap_or(64) * PAGE_BYTES;
    let (mut before, mut after) = (vec![0; most], vec![0; most]);
    for (word, (old_data, new_data)) in (0_u32..).zip(old.data_words().iter().zip(new.data_words())) {
        if old_data | new_data == 0 {
            continue;
        }
        let first = word * CHUNK_PAGES;
        let bytes = usize::try_from(CHUNK_PAGES.min(pages - first)).unwrap_or(0) * PAGE_BYTES;
        let (Some(before), Some(after)) = (before.get_mut(..bytes), after.get_mut(..bytes)) else { continue };
        old.read(first, before)?;
        new.read(first, after)?;
        let pairs = before.chunks_exact(PAGE_BYTES).zip(after.chunks_exact(PAGE_BYTES));
        let bits =
            pairs.enumerate().filter(|(_, (before, after))| before != after).fold(0, |bits, (i, _)| bits | 1 << i);
        dirty.mark_words(RegionId(0), word, [bits]);
    }
    old.verify()?;
    new.verify()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(guest: &Rounds, page: u32) -> u8 {
        let mut bytes = vec![0; PAGE_BYTES];
        guest.read(RegionId(0), page, &mut bytes).unwrap();
        bytes[0]
    }

    fn harvest(guest: &Rounds) -> (Vec<u32>, Pending) {
        let mut dirty = DirtyMap::new(guest.layout());
        let pending = guest.harvest(&mut dirty).unwrap();
        (dirty.pages().map(|page| page.0).collect(), pending)
    }

    #[test]
    fn each_harvest_but_the_first_brings_the_next_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("t{i}.mem"))).collect();
        // An odd size: the last page is partial.
        let mut image = vec![0; 130 * PAGE_BYTES + 5];
        std::fs::write(&paths[0], &image).unwrap();
        image[65 * PAGE_BYTES] = 1;
        image[130 * PAGE_BYTES + 4] = 1;
        std::fs::write(&paths[1], &image).unwrap();
        image[65 * PAGE_BYTES] = 2;
        std::fs::write(&paths[2], &image).unwrap();

        let guest = Rounds::open(&paths).unwrap();
        assert_eq!(harvest(&guest), (vec![], Pending::More));
        assert_eq!(page(&guest, 65), 0);
        assert_eq!(harvest(&guest), (vec![65, 130], Pending::More));
        assert_eq!(page(&guest, 65), 1);
        assert_eq!(harvest(&guest), (vec![65], Pending::Unknown));
        assert_eq!(page(&guest, 65), 2);
        assert_eq!(harvest(&guest), (vec![], Pending::Unknown));
        guest.pause().unwrap();
    }

    #[test]
    fn who_was_cut_off_begins_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("t{i}.mem"))).collect();
        for (byte, path) in (7..).zip(&paths) {
            std::fs::write(path, vec![byte; 3 * PAGE_BYTES]).unwrap();
        }
        let guest = Rounds::open(&paths).unwrap().from_the_last();
        assert_eq!(harvest(&guest), (vec![], Pending::Unknown));
        assert_eq!(page(&guest, 1), 9);
        assert_eq!(harvest(&guest), (vec![], Pending::Unknown));
        guest.pause().unwrap();
    }

    #[test]
    fn one_snapshot_is_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t0.mem");
        std::fs::write(&path, [1; 10]).unwrap();
        let guest = Rounds::open(&[path]).unwrap();
        assert_eq!(harvest(&guest), (vec![], Pending::Unknown));
        assert_eq!(harvest(&guest), (vec![], Pending::Unknown));
    }

    #[test]
    fn sizes_must_agree() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.mem"), dir.path().join("b.mem"));
        std::fs::write(&a, [1; 10]).unwrap();
        std::fs::write(&b, [1; 11]).unwrap();
        let text = Rounds::open(&[a, b]).unwrap_err().to_string();
        assert!(text.contains("a.mem has 10 bytes") && text.contains("b.mem has 11"), "{text}");
        assert!(Rounds::open(&[]).is_err());
    }
}
