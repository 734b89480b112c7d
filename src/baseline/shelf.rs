//! The baselines that a receiver takes from its senders' offers.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dwcp_core::baseline::{About, Baseline, BaselineError, BaselineStore, ManifestDigest};
use dwcp_core::wire::{Digest, Name};

use super::{UseOfBaseline, failure, is_of, unknown};
use crate::exit::Failure;
use crate::report::Report;

/// A store as a receiver uses it.
#[derive(Debug)]
pub(crate) struct Shelf {
    store: BaselineStore,
    path: PathBuf,
    tenant: Option<Name>,
    /// None: all.
    names: Vec<Name>,
    /// Those that transfers use now: opening one twice would take its memory twice.
    open: Mutex<HashMap<Digest, Weak<Baseline>>>,
    /// Those of which a page was not what it should be. spec: O-9
    spoiled: Mutex<HashSet<Digest>>,
}

impl Shelf {
    /// `None`: no store was named.
    ///
    /// A tenant of whom nothing is there is told: it may come later, and may be misspelt.
    pub(crate) fn open(args: &UseOfBaseline, keeps: bool, report: &Report) -> Result<Option<Self>, Failure> {
        let Some((store, path)) = args.store()?.zip(args.baseline_store.clone()) else { return Ok(None) };
        let (tenant, names) = (args.baseline_tenant.clone(), args.baseline.clone());
        let listed = store.list().map_err(failure(&path))?.baselines;
        for name in &names {
            if !listed.iter().any(|one| is_of(one, tenant.as_ref(), Some(name))) {
                return Err(unknown(&path, tenant.as_ref(), Some(name), &listed).advise(
                    "See `dwcp baseline list`, or leave --baseline out: then any that a sender names is taken.",
                ));
            }
        }
        // Who keeps what arrives was told already that the tenant is new.
        if tenant.is_some() && !keeps && !listed.iter().any(|one| is_of(one, tenant.as_ref(), None)) {
            let what = unknown(&path, tenant.as_ref(), None, &listed).what;
            report.warn(&format!("warning: {what}: look at --baseline-tenant, or add baselines for it"));
        }
        let (open, spoiled) = (Mutex::default(), Mutex::default());
        Ok(Some(Self { store, path, tenant, names, open, spoiled }))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The first of the offered baselines that is here, and which of them it is. May block.
    pub(crate) fn find(&self, offered: &[Digest]) -> Result<Option<(u8, Arc<Baseline>)>, BaselineError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let spoiled = self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        open.retain(|_, baseline| baseline.strong_count() > 0);
        for (number, digest) in (0_u8..).zip(offered).filter(|(_, digest)| !spoiled.contains(digest)) {
            if let Some(known) = open.get(digest).and_then(Weak::upgrade) {
                return Ok(Some((number, known)));
            }
            if let Some((_, found)) = self.store.first_of(&[ManifestDigest(digest.0)], &|about| self.takes(about))? {
                let found = Arc::new(found);
                open.insert(*digest, Arc::downgrade(&found));
                return Ok(Some((number, found)));
            }
        }
        Ok(None)
    }

    fn takes(&self, about: &About) -> bool {
        let named = self.names.is_empty() || self.names.contains(&about.name);
        named && self.tenant.as_ref().is_none_or(|tenant| about.tenant == *tenant)
    }

    /// No transfer is to walk into the same again.
    pub(crate) fn spoil(&self, digest: Digest) {
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }
}
