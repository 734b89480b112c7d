//! Collection: what no manifest refers to goes, and baselines that are not wanted any more.
//!
//! ```text
//!  manifests removed ── names synced ── packs without a user removed, dead chunks of the others made holes
//! ```
//!
//! In this order, a power cut brings back no manifest whose pages are gone. Nobody adds meanwhile; who reads has locked the
//! manifest, which is then neither removed nor are its pages. A hole is never written to again (see the nonces in `key.rs`).

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::error::{BaselineError, Damage};
use super::key::Salt;
use super::names::{self, FileName};
use super::pack::Pack;
use super::store::{BaselineStore, Indexed, Summary, Survey};
use crate::storage::{File, Kind};

/// What [`BaselineStore::collect`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// Baselines that are gone.
    pub removed: Vec<Summary>,
    /// Baselines that were to go, and that somebody uses.
    pub in_use: Vec<Summary>,
    /// Manifests that could not be read, and are gone.
    pub damaged: Vec<(String, BaselineError)>,
    /// Files that could be neither used nor removed, and why. While a manifest that may be whole is among them no pack is removed:
    /// which ones it needs is not known.
    pub left: Vec<(String, BaselineError)>,
    /// Bytes of the store before.
    pub bytes_before: u64,
    /// Bytes of the store now.
    pub bytes: u64,
}

impl BaselineStore {
    /// Removes what no baseline needs: leftovers of crashes, baselines that were replaced, damaged manifests, and those of
    /// which `unwanted` says so. With a limit also those that were used longest ago, until all others fit. A baseline that
    /// is in use stays. Waits until nobody else adds or collects.
    ///
    /// # Errors
    /// The folder cannot be read or written, or has files of a newer version; then nothing that is needed is gone.
    pub fn collect(
        &self,
        unwanted: &mut dyn FnMut(&Summary) -> bool,
        limit: Option<u64>,
    ) -> Result<Collected, BaselineError> {
        let _writing = self.write_lock()?;
        self.sweep(self.survey()?, unwanted, limit)
    }

    /// As [`collect`](Self::collect), under the lock, of what was found there.
    pub(super) fn sweep(
        &self,
        mut survey: Survey,
        unwanted: &mut dyn FnMut(&Summary) -> bool,
        limit: Option<u64>,
    ) -> Result<Collected, BaselineError> {
        let bytes_before = self.bytes()?;
        let mut collected = Collected { bytes_before, ..Collected::default() };
        self.remove_damaged(&mut survey, &mut collected)?;
        let all_known = survey.unreadable.is_empty();
        collected.left.append(&mut survey.unreadable);
        survey.indexed.sort_by_key(|one| std::cmp::Reverse(one.summary.about.generation));
        let mut names = HashSet::new();
        let mut live = Vec::new();
        for indexed in survey.indexed {
            let about = &indexed.summary.about;
            let replaced = !names.insert((about.tenant.clone(), about.name.clone()));
            if replaced || unwanted(&indexed.summary) {
                live.extend(self.remove(indexed, &mut collected)?);
            } else {
                live.push(indexed);
            }
        }
        if let Some(limit) = limit {
            self.shrink(&mut live, limit, &mut collected)?;
        }
        // What is removed below must not be wanted by a manifest that comes back.
        self.sync_names()?;
        self.remove_garbage(&live, all_known, &mut collected)?;
        self.sync_names()?;
        collected.bytes = self.bytes()?;
        Ok(collected)
    }

    /// The baselines that were used longest ago, until the rest fits.
    fn shrink(&self, live: &mut Vec<Indexed>, limit: u64, collected: &mut Collected) -> Result<(), BaselineError> {
        live.sort_by_key(|one| std::cmp::Reverse((one.summary.used, one.summary.about.generation)));
        let mut users: HashMap<(Salt, u64), u64> = HashMap::new();
        live.iter().for_each(|one| one.keys().for_each(|(key, _)| *users.entry(key).or_default() += 1));
        let mut bytes: u64 = live.iter().map(|one| one.manifest_bytes()).sum();
        let mut counted = HashSet::new();
        bytes += live
            .iter()
            .flat_map(Indexed::keys)
            .filter(|(key, _)| counted.insert(*key))
            .map(|(_, own)| own)
            .sum::<u64>();
        let mut stay = Vec::new();
        while bytes > limit
            && let Some(oldest) = live.pop()
        {
            let keys: Vec<_> = oldest.keys().collect();
            let manifest = oldest.manifest_bytes();
            if let Some(in_use) = self.remove(oldest, collected)? {
                stay.push(in_use);
                continue;
            }
            bytes -= manifest;
            for (key, own) in keys {
                if let Some(count) = users.get_mut(&key) {
                    *count -= 1;
                    bytes -= if *count == 0 { own } else { 0 };
                }
            }
        }
        live.append(&mut stay);
        Ok(())
    }

    /// Takes a manifest's name away. It is handed back when somebody uses it.
    fn remove(&self, indexed: Indexed, collected: &mut Collected) -> Result<Option<Indexed>, BaselineError> {
        if !self.remove_manifest(&indexed.summary.name.file())? {
            collected.in_use.push(indexed.summary.clone());
            return Ok(Some(indexed));
        }
        collected.removed.push(indexed.summary);
        Ok(None)
    }

    fn remove_damaged(&self, survey: &mut Survey, collected: &mut Collected) -> Result<(), BaselineError> {
        for (file, error) in survey.damaged.drain(..) {
            match self.remove_manifest(&file) {
                Ok(true) => collected.damaged.push((file, error)),
                // Who opened it when it was whole reads its packs.
                Ok(false) => survey.unreadable.push((file, error)),
                Err(refused) if refused.is_unreadable() => {
                    if self.remove_leftover(&file, collected)? {
                        collected.damaged.push((file, error));
                    }
                }
                Err(refused) => return Err(refused),
            }
        }
        Ok(())
    }

    /// Whether it is gone; false: somebody has locked it.
    fn remove_manifest(&self, name: &str) -> Result<bool, BaselineError> {
        let Some(file) = self.find_to_write(name)? else { return Ok(true) };
        let locked = file.lock().map_err(|error| BaselineError::io(format!("cannot lock {name}"), error))?;
        if locked {
            // Whoever opened it before finds, once it has the lock, that the name is gone.
            self.remove_name(name)?;
        }
        Ok(locked)
    }

    fn remove_name(&self, name: &str) -> Result<(), BaselineError> {
        match self.folder.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BaselineError::io(format!("removing {name}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is gone; a directory is somebody else's, and stays.
    fn remove_leftover(&self, name: &str, collected: &mut Collected) -> Result<bool, BaselineError> {
        match self.remove_name(name) {
            Err(error)
                if self.folder.stat(name).is_ok_and(|stat| stat.is_some_and(|stat| stat.kind == Kind::Folder)) =>
            {
                collected.left.push((name.to_owned(), error));
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// A file that is open for both. `None`: there is none.
    fn find_to_write(&self, name: &str) -> Result<Option<Arc<dyn File>>, BaselineError> {
        match self.folder.open(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BaselineError::io(format!("cannot open {name}"), error)),
        }
    }

    /// Files that no manifest refers to, and chunks; packs only where all manifests are known.
    fn remove_garbage(
        &self,
        live: &[Indexed],
        all_known: bool,
        collected: &mut Collected,
    ) -> Result<(), BaselineError> {
        let mut chunks: HashMap<Salt, Vec<Range<u64>>> = HashMap::new();
        for ((salt, at), bytes) in live.iter().flat_map(Indexed::keys) {
            chunks.entry(salt).or_default().push(at..at + bytes);
        }
        let listed = self.folder.list().map_err(|error| BaselineError::io("cannot list the store", error))?;
        let manifests: HashSet<&str> = listed.iter().map(String::as_str).collect();
        for name in &listed {
            match FileName::of(name) {
                FileName::Unfinished => drop(self.remove_leftover(name, collected)?),
                FileName::Used(of) if !manifests.contains(of.file().as_str()) => {
                    self.remove_leftover(name, collected)?;
                }
                FileName::Pack(salt) if all_known => match chunks.get_mut(&salt) {
                    None => drop(self.remove_leftover(name, collected)?),
                    Some(live) => match self.punch(&salt, live) {
                        Err(error) if error.is_unreadable() => collected.left.push((name.clone(), error)),
                        other => other?,
                    },
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives back what lies between the chunks that are needed, where the file system can.
    fn punch(&self, salt: &Salt, live: &mut [Range<u64>]) -> Result<(), BaselineError> {
        let name = names::pack(salt);
        let punching = |error| BaselineError::io(format!("making holes in {name}"), error);
        let Some(file) = self.find_to_write(&name)? else { return Ok(()) };
        let end = file.stat().map_err(punching)?.bytes;
        live.sort_by_key(|range| range.start);
        let mut from = Pack::first();
        for range in live.iter().chain([&(end..end)]) {
            if range.start > from {
                match file.punch(from, range.start - from) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                    other => other.map_err(punching)?,
                }
            }
            from = from.max(range.end);
        }
        Ok(())
    }
}

impl Indexed {
    /// Its chunks, by where they stand, with their bytes.
    fn keys(&self) -> impl Iterator<Item = ((Salt, u64), u64)> + '_ {
        self.chunks.iter().filter_map(|chunk| {
            let salt = self.summary.about.packs().get(usize::from(chunk.pack))?;
            Some(((*salt, chunk.at), u64::from(chunk.bytes)))
        })
    }

    /// Its packs, and how far each must reach.
    pub(super) fn packs(&self) -> Vec<(Salt, u64)> {
        let mut ends: Vec<(Salt, u64)> = self.summary.about.packs().iter().map(|salt| (*salt, Pack::first())).collect();
        for chunk in &self.chunks {
            if let Some((_, end)) = ends.get_mut(usize::from(chunk.pack)) {
                *end = chunk.end().unwrap_or(u64::MAX).max(*end);
            }
        }
        ends
    }

    fn manifest_bytes(&self) -> u64 {
        self.summary.bytes - self.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum::<u64>()
    }
}

impl Survey {
    /// What the system could not read stays: it is removed by those alone who are told of it.
    pub(super) fn spare_unreadable(&mut self) {
        let told =
            |error: &BaselineError| matches!(error, BaselineError::Damaged { damage: Damage::Unreadable { .. }, .. });
        self.unreadable.extend(self.damaged.extract_if(.., |(_, error)| told(error)));
    }

    /// Finds out what only one baseline uses.
    pub(super) fn count_own(&mut self) {
        let mut users: HashMap<(Salt, u64), u32> = HashMap::new();
        self.indexed.iter().flat_map(Indexed::keys).for_each(|(key, _)| *users.entry(key).or_default() += 1);
        for indexed in &mut self.indexed {
            let shared = indexed.keys().filter(|(key, _)| users.get(key).is_some_and(|users| *users > 1));
            indexed.summary.own_bytes = indexed.summary.bytes - shared.map(|(_, bytes)| bytes).sum::<u64>();
        }
    }
}
