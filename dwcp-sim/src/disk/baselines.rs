//! A store of baselines: what was added is there, whole, and what was removed is gone.

use std::collections::BTreeMap;

use dwcp_core::baseline::{BaselineError, BaselineStore, Limits, Listing, StoreKey, Summary};
use dwcp_core::guest::{Guest, Memory};
use dwcp_core::wire::Name;
use dwcp_core::{Layout, PAGE_BYTES, RegionId};

use super::model::{Disk, State};
use super::{Node, Stop};
use crate::rng::Rng;

const STORE: &str = "baselines";
/// Enough for pages of one chunk, and some of the next.
const PAGES: u32 = 70;

/// Which state of a guest.
type Version = u8;

/// What was promised of one name.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Promise {
    /// It stands for this.
    sure: Option<Version>,
    /// Or for one of these: something was begun, and nobody said that it was done.
    maybe: Vec<Version>,
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Told(BTreeMap<u8, Promise>);

/// One node that adds, opens and collects.
pub(super) struct Keeper;

impl Node for Keeper {
    type Told = Told;

    fn first(&self) -> State<Told> {
        State::default()
    }

    fn live(&self, disk: &Disk<Told>, rng: &mut Rng, last: bool) -> Result<(), Stop> {
        let key = StoreKey::new(&[7; 32]);
        let store = BaselineStore::make_over(disk.folder(STORE), key, Limits::default()).map_err(stop)?;
        let store = store.with_salts_of(rng.below(1 << 60));
        self.check(disk, &store)?;
        for _ in 0..1 + rng.below(3) {
            match rng.below(10) {
                0..7 => self.add(disk, &store, rng)?,
                7 => self.remove(disk, &store, rng)?,
                _ => {
                    store.collect(&mut |_| false, None).map_err(stop)?;
                }
            }
            self.check(disk, &store)?;
        }
        if last { self.empty(disk, &store) } else { Ok(()) }
    }
}

impl Keeper {
    fn add(&self, disk: &Disk<Told>, store: &BaselineStore, rng: &mut Rng) -> Result<(), Stop> {
        let (number, version) = (rng.below(3) as u8, rng.below(200) as u8);
        let in_use = self.newest(store, number)?.filter(|_| rng.percent(30));
        let in_use = in_use.map(|summary| store.look_into(&summary).map_err(stop)).transpose()?;
        disk.tell(|told| told.0.entry(number).or_default().maybe.push(version));
        store.add(&tenant(), &name(number), &image(version), &mut |_| {}).map_err(stop)?;
        disk.tell(|told| {
            told.0.insert(number, Promise { sure: Some(version), maybe: Vec::new() });
        });
        if let Some(in_use) = in_use
            && in_use.verify(&mut |_| {}).map_err(|error| broken(&error))? != in_use.about().pages
        {
            return Err(Stop::Broken("a baseline that was in use has lost pages".into()));
        }
        Ok(())
    }

    fn remove(&self, disk: &Disk<Told>, store: &BaselineStore, rng: &mut Rng) -> Result<(), Stop> {
        let number = rng.below(3) as u8;
        disk.tell(|told| {
            let promise = told.0.entry(number).or_default();
            promise.maybe.extend(promise.sure.take());
        });
        store.collect(&mut |one| one.about.name == name(number), None).map_err(stop)?;
        disk.tell(|told| {
            told.0.remove(&number);
        });
        Ok(())
    }

    /// Nobody wants any of them: nothing is left but the header.
    fn empty(&self, disk: &Disk<Told>, store: &BaselineStore) -> Result<(), Stop> {
        store.collect(&mut |_| true, None).map_err(stop)?;
        let left = disk.folder(STORE).list().unwrap_or_default();
        if left == ["store"] { Ok(()) } else { Err(Stop::Broken(format!("garbage is left: {left:?}"))) }
    }

    fn list(&self, store: &BaselineStore) -> Result<Listing, Stop> {
        let listing = store.list().map_err(|error| broken(&error))?;
        match listing.damaged.first() {
            Some((_, error)) => Err(Stop::Broken(format!("half of a manifest is visible: {error}"))),
            None => Ok(listing),
        }
    }

    fn newest(&self, store: &BaselineStore, number: u8) -> Result<Option<Summary>, Stop> {
        Ok(self.list(store)?.baselines.into_iter().find(|one| one.about.name == name(number)))
    }

    fn check(&self, disk: &Disk<Told>, store: &BaselineStore) -> Result<(), Stop> {
        let told = disk.told();
        for number in 0..3 {
            let promise = told.0.get(&number).cloned().unwrap_or_default();
            let Some(newest) = self.newest(store, number)? else {
                if promise.sure.is_some() {
                    return Err(Stop::Broken(format!("baseline {number} was added, and is lost: {promise:?}")));
                }
                continue;
            };
            let mut versions = promise.sure.into_iter().chain(promise.maybe.iter().copied());
            if !versions.any(|version| self.holds(store, &newest, version)) {
                return Err(Stop::Broken(format!("baseline {number} is not what was promised: {promise:?}")));
            }
        }
        Ok(())
    }

    /// Whether it is this state of the guest, byte for byte.
    fn holds(&self, store: &BaselineStore, summary: &Summary, version: Version) -> bool {
        let expected = image(version);
        let Ok(baseline) = store.look_into(summary) else { return false };
        let (mut ours, mut theirs) = (vec![0; PAGES as usize * PAGE_BYTES], vec![0; PAGES as usize * PAGE_BYTES]);
        expected.read(RegionId(0), 0, &mut ours).unwrap();
        baseline.layout() == expected.layout() && baseline.read(RegionId(0), 0, &mut theirs).is_ok() && ours == theirs
    }
}

fn tenant() -> Name {
    Name::new("t").unwrap()
}

fn name(number: u8) -> Name {
    Name::new(&format!("vm{number}")).unwrap()
}

/// Versions share most of their pages.
fn image(version: Version) -> Memory {
    let memory = Memory::new(Layout::new(&[u64::from(PAGES) * PAGE_BYTES as u64]).unwrap());
    for page in 0..PAGES {
        let of = if page % 16 == u32::from(version) % 16 { 1000 + u32::from(version) } else { page % 60 };
        let mut bytes = [0; PAGE_BYTES];
        bytes[..4].copy_from_slice(&of.to_le_bytes());
        memory.write(RegionId(0), page, &bytes).unwrap();
    }
    memory
}

/// An error that only a failing disk may cause.
fn stop(error: BaselineError) -> Stop {
    if error.is_damage() { broken(&error) } else { Stop::fault(error) }
}

fn broken(error: &BaselineError) -> Stop {
    Stop::Broken(error.to_string())
}
