//! A receiver: its folder of images and its folder of records.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use dwcp_core::guest::{ImageFolder, ImageStaging};
use dwcp_core::net::Records;
use dwcp_core::session::leaves::{Leaves, Tree, leaf, zero_leaf};
use dwcp_core::session::{Record, Standing};
use dwcp_core::wire::{Digest, FenceEpoch, GuestKind, Name, Offer, TransferId};
use dwcp_core::{Guest, GuestError, Layout, PAGE_BYTES, RegionId};

use super::model::{Disk, State};
use super::{Node, Stop};
use crate::PEER;
use crate::rng::Rng;

const IMAGES: &str = "images";
const RECORDS: &str = "records";
const NAME: &str = "vm1";
const DAY: Duration = Duration::from_secs(86_400);

/// What a page is full of: its number among all, and which of its versions. Version 0 is zeros.
type Version = u8;

/// What was promised.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Told {
    /// Pages that are durable, and will not be sent again.
    durable: BTreeMap<(u16, u32), Version>,
    standing: Option<Said>,
    transfer: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Said {
    Ready,
    /// RUN came: its source has given up for good.
    Obeying,
    Running,
}

/// One image that arrives, whatever happens.
pub(super) struct Receiver {
    layout: Layout,
    /// The image as it is at its source.
    image: BTreeMap<(u16, u32), Version>,
    /// Another image has its name, and is to be replaced.
    old: bool,
}

impl Receiver {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let regions = [rng.between(1, 24) * 4096 - rng.pick(&[0, 0, 1, 4000]), rng.between(1, 6) * 4096];
        let layout = Layout::new(if rng.percent(50) { &regions } else { &regions[..1] }).unwrap();
        let mut image = BTreeMap::new();
        for (id, region) in layout.regions() {
            for page in 0..region.pages {
                image.insert((id.0, page), rng.pick(&[0, 1, 1, 2]));
            }
        }
        Self { layout, image, old: rng.percent(40) }
    }

    /// A page as it is read back: cut off where its region ends.
    fn page(&self, (region, page): (u16, u32), version: Version) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        if version > 0 {
            for (sector, part) in bytes.chunks_mut(super::model::SECTOR).enumerate() {
                part.fill(version);
                part[0] = sector as u8;
                part[1..5].copy_from_slice(&page.to_le_bytes());
                part[5] = region as u8;
            }
        }
        let end = self.layout.region(RegionId(region)).unwrap().bytes - u64::from(page) * PAGE_BYTES as u64;
        bytes[usize::try_from(end).unwrap().min(PAGE_BYTES)..].fill(0);
        bytes
    }

    fn leaf(&self, page: (u16, u32), version: Version) -> Digest {
        if version == 0 { zero_leaf() } else { leaf(&self.page(page, version)) }
    }

    fn root(&self) -> Digest {
        let leaves = Leaves::new(&self.layout);
        for (&(region, page), &version) in &self.image {
            leaves.set(self.layout.flat(RegionId(region), page).unwrap(), self.leaf((region, page), version));
        }
        Tree::new(&self.layout).root(&leaves)
    }

    fn bytes(&self, read: impl Fn((u16, u32)) -> Vec<u8>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (id, region) in self.layout.regions() {
            let end = bytes.len() + usize::try_from(region.bytes).unwrap();
            (0..region.pages).for_each(|page| bytes.extend(read((id.0, page))));
            bytes.truncate(end);
        }
        bytes
    }

    fn offer(&self, transfer: u8) -> Offer {
        let (transfer, name) = (TransferId([transfer; 16]), Name::new(NAME).unwrap());
        Offer {
            transfer,
            epoch: FenceEpoch(1),
            kind: GuestKind::Image,
            name,
            dictionaries: Vec::new(),
            baselines: Vec::new(),
            layout: self.layout.clone(),
        }
    }

    /// What has the image's name is what was there, or all of the image.
    fn check_visible(&self, disk: &Disk<Told>) -> Result<(), Stop> {
        let state = disk.state();
        let visible = state.names.get(&(IMAGES, NAME.to_owned())).map(|inode| &state.inodes[*inode].live);
        let whole = |expected: &[u8]| {
            visible.is_some_and(|content| {
                let mut bytes = vec![0; usize::try_from(content.bytes).unwrap()];
                content.read(0, &mut bytes).is_ok() && bytes == expected
            })
        };
        let new = whole(&self.bytes(|page| self.page(page, self.image[&page])));
        let old = if self.old { whole(b"old") } else { visible.is_none() };
        match state.told.standing {
            Some(Said::Running) if !new => broken("RUNNING was said, and the image is not there"),
            None | Some(Said::Ready) if !old => broken("nobody said RUN, and something is there"),
            _ if !old && !new => broken("what is there is neither the old nor the whole new image"),
            _ => Ok(()),
        }
    }

    /// What is held is what it is said to be, all else is zeros, and nothing that was durable is missing.
    fn check_held(&self, staging: &ImageStaging, told: &Told) -> Result<(), Stop> {
        let mut held = BTreeMap::new();
        staging.held(&mut |region, page, leaf| {
            held.insert((region.0, page), leaf);
        });
        for &page in self.image.keys() {
            let bytes = read(staging, page)?;
            let expected = held.get(&page).copied().unwrap_or(zero_leaf());
            let found = if bytes.iter().all(|byte| *byte == 0) { zero_leaf() } else { leaf(&bytes) };
            if found != expected {
                return broken(&format!("page {page:?} is not what the journal says"));
            }
        }
        for (&page, &version) in &told.durable {
            if held.get(&page).copied().unwrap_or(zero_leaf()) != self.leaf(page, version) {
                return broken(&format!("page {page:?} was durable, and is lost"));
            }
        }
        Ok(())
    }

    /// The promise of an earlier life, if there is one. True: the image is handed over.
    fn keep_promise(&self, disk: &Disk<Told>, records: &Records, folder: &ImageFolder, rng: &mut Rng) -> Step {
        let listing = records.list().map_err(|error| Stop::Broken(error.to_string()))?;
        if let Some(damaged) = listing.damaged.first() {
            return Err(Stop::Broken(format!("a record was half written: {}", damaged.error)));
        }
        let Some(record) = listing.records.first() else {
            return if disk.told().standing.is_some() { broken("a promise is not remembered") } else { Ok(false) };
        };
        let staging = match folder.reopen(record) {
            Ok(staging) => staging,
            // A record that could not be written is there all the same: an operator must look, but nobody was told.
            Err(_) if disk.told().standing.is_none() => {
                fault(records.forget(record.transfer))?;
                return Ok(false);
            }
            Err(error) => return broken(&format!("what was promised cannot be found: {error}")),
        };
        let bytes = self.bytes(|page| read(&staging, page).unwrap_or_default());
        if bytes != self.bytes(|page| self.page(page, self.image[&page])) || record.root != self.root() {
            return broken("what was promised is not the image");
        }
        // A source that has not heard READY cannot say RUN.
        let said = disk.told().standing;
        if said.is_none() || (said == Some(Said::Ready) && rng.percent(30)) {
            // Its source offers it again, so it never gave up.
            disk.tell(|told| told.standing = None);
            fault(records.forget(record.transfer))?;
            return Ok(false);
        }
        self.run(disk, records, &staging, record)?;
        Ok(true)
    }

    fn run(&self, disk: &Disk<Told>, records: &Records, staging: &ImageStaging, record: &Record) -> Result<(), Stop> {
        disk.tell(|told| {
            told.durable.clear();
            told.standing = Some(Said::Obeying);
        });
        staging.resume().map_err(Stop::fault)?;
        fault(records.store(&Record { standing: Standing::Ran, ..record.clone() }))?;
        disk.tell(|told| told.standing = Some(Said::Running));
        self.check_visible(disk)
    }

    /// Lanes write, groups become durable.
    fn receive(&self, disk: &Disk<Told>, staging: &ImageStaging, rng: &mut Rng) -> Result<(), Stop> {
        let mut noted = BTreeMap::new();
        for _ in 0..rng.below(9) {
            if rng.percent(35) {
                self.commit(disk, staging, &mut noted)?;
                continue;
            }
            let pages: Vec<(u16, u32)> = self.image.keys().copied().collect();
            let first = rng.below(pages.len() as u64) as usize;
            let run = pages[first..].iter().take(1 + rng.below(5) as usize);
            let run = run.take_while(|page| page.0 == pages[first].0);
            let run: Vec<_> = run.map(|page| (*page, rng.pick(&[0, 1, 2, 3, self.image[page]]))).collect();
            self.write(disk, staging, &run, rng.percent(90), &mut noted)?;
        }
        Ok(())
    }

    fn write(
        &self,
        disk: &Disk<Told>,
        staging: &ImageStaging,
        written: &[((u16, u32), Version)],
        reported: bool,
        noted: &mut BTreeMap<(u16, u32), Version>,
    ) -> Result<(), Stop> {
        disk.tell(|told| told.durable.retain(|page, _| written.iter().all(|(other, _)| page != other)));
        noted.retain(|page, _| written.iter().all(|(other, _)| page != other));
        let ((region, first), _) = written[0];
        let region = RegionId(region);
        let bytes: Vec<u8> = written.iter().flat_map(|(page, version)| self.page(*page, *version)).collect();
        staging.write(region, first, &bytes).map_err(Stop::fault)?;
        // A lane may die between the two.
        if reported {
            let leaves: Vec<Digest> = written.iter().map(|(page, version)| self.leaf(*page, *version)).collect();
            staging.written(region, first, &leaves);
            noted.extend(written.iter().copied());
        }
        Ok(())
    }

    fn commit(
        &self,
        disk: &Disk<Told>,
        staging: &ImageStaging,
        noted: &mut BTreeMap<(u16, u32), Version>,
    ) -> Result<(), Stop> {
        // A park that fails throws everything away; whether it fails is known only afterwards.
        let before = disk.told().durable;
        disk.tell(|told| told.durable.clear());
        staging.park();
        if disk.has_failed() {
            return Err(Stop::fault("a park failed"));
        }
        disk.tell(|told| {
            told.durable = before;
            told.durable.append(noted);
        });
        Ok(())
    }

    /// The rest of the image, and the promise.
    fn finish(&self, disk: &Disk<Told>, records: &Records, staging: &ImageStaging, run: bool) -> Result<(), Stop> {
        let mut noted = BTreeMap::new();
        for (&page, &version) in &self.image {
            if read(staging, page)? != self.page(page, version) {
                self.write(disk, staging, &[(page, version)], true, &mut noted)?;
            }
        }
        staging.stage().map_err(Stop::fault)?;
        disk.tell(|told| told.durable.append(&mut noted));
        let told = disk.told();
        let record = Record::of(&self.offer(told.transfer), 1, self.root(), PEER, Standing::Ready);
        fault(records.store(&record))?;
        disk.tell(|told| told.standing = Some(Said::Ready));
        if run { self.run(disk, records, staging, &record) } else { Ok(()) }
    }
}

/// Whether the image is handed over.
type Step = Result<bool, Stop>;

impl Node for Receiver {
    type Told = Told;

    fn first(&self) -> State<Told> {
        let disk = Disk::start(State::default(), None, None, false);
        if self.old {
            let names = disk.folder(IMAGES);
            let file = names.create(NAME).unwrap();
            file.write_at(0, b"old").unwrap();
            file.sync().unwrap();
            names.sync().unwrap();
        }
        disk.state()
    }

    fn live(&self, disk: &Disk<Told>, rng: &mut Rng, last: bool) -> Result<(), Stop> {
        let records = Records::over(disk.folder(RECORDS));
        let folder = ImageFolder::over(disk.folder(IMAGES)).replacing(self.old);
        self.check_visible(disk)?;
        if disk.told().standing == Some(Said::Running) {
            return self.check_promise(&records);
        }
        if self.keep_promise(disk, &records, &folder, rng)? {
            return Ok(());
        }
        // Nothing is young or old here: what has a journal stays.
        folder.sweep(SystemTime::UNIX_EPOCH, |_| false).map_err(Stop::fault)?;
        // The sender has a new id when its own state was lost.
        let transfer = if rng.percent(50) { disk.told().transfer } else { rng.below(200) as u8 };
        disk.tell(|told| told.transfer = transfer);
        let staging = match folder.go_on(&self.offer(transfer), PEER, |_| false) {
            Ok(staging) => staging,
            Err(error) => return Err(Stop::fault(error)),
        };
        self.check_held(&staging, &disk.told())?;
        let ended = self.receive(disk, &staging, rng).and_then(|()| match rng.below(10) {
            0 if !last => {
                disk.tell(|told| told.durable.clear());
                staging.discard();
                Ok(())
            }
            1..=3 if !last => self.commit(disk, &staging, &mut BTreeMap::new()),
            way => self.finish(disk, &records, &staging, last || way < 8),
        });
        if matches!(ended, Err(Stop::Fault(_))) && disk.told().standing.is_none() {
            disk.tell(|told| told.durable.clear());
            if records.forget(TransferId([disk.told().transfer; 16])).is_ok() {
                staging.discard();
            }
        }
        ended?;
        if last { self.check_clean(disk, &folder) } else { Ok(()) }
    }
}

impl Receiver {
    fn check_promise(&self, records: &Records) -> Result<(), Stop> {
        let listing = records.list().map_err(|error| Stop::Broken(error.to_string()))?;
        let ran = listing.records.iter().any(|record| record.standing == Standing::Ran && record.root == self.root());
        if ran { Ok(()) } else { broken("RUNNING was said, and is not remembered") }
    }

    /// Two days later, for a crash may bring back the names of what was gone on with under another id.
    fn check_clean(&self, disk: &Disk<Told>, folder: &ImageFolder) -> Result<(), Stop> {
        folder.sweep(SystemTime::UNIX_EPOCH + DAY * 2, |_| false).map_err(Stop::fault)?;
        let names = disk.folder(IMAGES).list().unwrap_or_default();
        if names == [NAME] { Ok(()) } else { broken(&format!("more is left than the image: {names:?}")) }
    }
}

fn read(staging: &ImageStaging, (region, page): (u16, u32)) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0; PAGE_BYTES];
    staging.read(RegionId(region), page, &mut bytes).map_err(|error: GuestError| Stop::Broken(error.to_string()))?;
    Ok(bytes)
}

fn fault<E: std::fmt::Display>(result: Result<(), E>) -> Result<(), Stop> {
    result.map_err(Stop::fault)
}

fn broken<T>(what: &str) -> Result<T, Stop> {
    Err(Stop::Broken(what.to_owned()))
}
