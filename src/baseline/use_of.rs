//! Baselines in a transfer: `--baseline` and what belongs to it, of `dwcp send`, `dwcp receive` and `dwcp estimate`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dwcp_core::baseline::{Baseline, BaselineStore, Limits, Summary};
use dwcp_core::wire::Name;

use super::{failure, is_of, key, unknown};
use crate::exit::{Exit, Failure};
use crate::place::must_be_folder;

/// Which baselines, and where they are.
#[derive(Clone, Debug, Args)]
pub(crate) struct UseOfBaseline {
    /// A baseline that the other end may have, too (see `dwcp baseline`): if it has, only what changed since travels. May be
    /// repeated, best first; a sender names the first four. A receiver takes any that its sender names, or only these
    #[arg(long, value_name = "NAME", requires = "baseline_store")]
    pub(crate) baseline: Vec<Name>,
    /// The directory given to `dwcp baseline add --store`
    #[arg(long, value_name = "DIR", requires = "baseline_key")]
    pub(crate) baseline_store: Option<PathBuf>,
    /// The key of that store
    #[arg(long, value_name = "FILE", requires = "baseline_store")]
    pub(crate) baseline_key: Option<PathBuf>,
    /// Only baselines of this tenant
    #[arg(long, value_name = "TENANT", requires = "baseline_store")]
    pub(crate) baseline_tenant: Option<Name>,
}

impl UseOfBaseline {
    /// The store, if one is named.
    pub(super) fn store(&self) -> Result<Option<BaselineStore>, Failure> {
        let (Some(path), Some(key_file)) = (&self.baseline_store, &self.baseline_key) else { return Ok(None) };
        must_be_folder(path, "Name with --baseline-store the one given to `dwcp baseline add --store`.")?;
        let store = BaselineStore::open(path, key::load(key_file)?, Limits::default());
        store.map(Some).map_err(failure(path))
    }

    /// The baselines that are named, which are not removed while they are open. That they are used is remembered: those that
    /// were not for long go first.
    pub(crate) fn open(&self) -> Result<Vec<Arc<Baseline>>, Failure> {
        self.each(|store, one| store.use_of(one))
    }

    /// The same for who only looks, and writes nothing.
    pub(crate) fn look(&self) -> Result<Vec<Arc<Baseline>>, Failure> {
        self.each(|_, _| {})
    }

    fn each(&self, opened: impl Fn(&BaselineStore, &Summary)) -> Result<Vec<Arc<Baseline>>, Failure> {
        if self.baseline.is_empty() {
            return Ok(Vec::new());
        }
        let Some(store) = self.store()? else { return Ok(Vec::new()) };
        let named = |name| {
            let (summary, baseline) = self.named(&store, name)?;
            opened(&store, &summary);
            Ok(baseline)
        };
        self.baseline.iter().map(named).collect()
    }

    fn named(&self, store: &BaselineStore, name: &Name) -> Result<(Summary, Arc<Baseline>), Failure> {
        let path = self.baseline_store.as_deref().unwrap_or(std::path::Path::new(""));
        let (tenant, all) = (self.baseline_tenant.as_ref(), store.list().map_err(failure(path))?.baselines);
        let mut found: Vec<_> = all.iter().filter(|one| is_of(one, tenant, Some(name))).collect();
        // The newest of a name stands first; one that was replaced stays as long as somebody uses it.
        found.dedup_by(|later, first| later.about.tenant == first.about.tenant);
        match found.as_slice() {
            [one] => Ok(((*one).clone(), Arc::new(store.look_into(one).map_err(failure(path))?))),
            [] => Err(unknown(path, tenant, Some(name), &all)
                .advise("See `dwcp baseline list`, or leave --baseline out: then all pages travel.")),
            several => {
                let tenants: Vec<_> = several.iter().map(|one| one.about.tenant.as_str()).collect();
                let what = format!("{name} is the name of baselines of several tenants: {}", tenants.join(", "));
                Err(Failure::new(Exit::Failed, what).advise("Say which one with --baseline-tenant."))
            }
        }
    }
}
