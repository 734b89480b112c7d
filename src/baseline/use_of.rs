//! `--baseline` of `dwcp send` and `dwcp receive`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dwcp_core::baseline::{Baseline, BaselineStore, Limits};
use dwcp_core::wire::Name;

use super::{failure, key};
use crate::exit::{Exit, Failure};

/// Which baseline, and where it is.
#[derive(Clone, Debug, Args)]
pub(crate) struct UseOfBaseline {
    /// A baseline that the other end has, too (see `dwcp baseline`): of it only what changed travels. Both ends must
    /// name theirs; pages that only one of them has travel as ever
    #[arg(long, value_name = "NAME", requires = "baseline_store", requires = "baseline_key")]
    pub(crate) baseline: Option<Name>,
    /// The directory given to `dwcp baseline add --store`
    #[arg(long, value_name = "DIR", requires = "baseline")]
    pub(crate) baseline_store: Option<PathBuf>,
    /// The key of that store
    #[arg(long, value_name = "FILE", requires = "baseline")]
    pub(crate) baseline_key: Option<PathBuf>,
    /// The tenant, where several have a baseline of that name
    #[arg(long, value_name = "TENANT", requires = "baseline")]
    pub(crate) baseline_tenant: Option<Name>,
}

impl UseOfBaseline {
    /// The baseline, which is not removed while it is open. `None`: none was asked for.
    pub(crate) fn open(&self) -> Result<Option<Arc<Baseline>>, Failure> {
        let (Some(name), Some(path), Some(key_file)) = (&self.baseline, &self.baseline_store, &self.baseline_key)
        else {
            return Ok(None);
        };
        let store = BaselineStore::open(path, key::load(key_file)?, Limits::default()).map_err(failure(path))?;
        let mut found = store.list().map_err(failure(path))?.baselines;
        found.retain(|one| one.about.name == *name);
        found.retain(|one| self.baseline_tenant.as_ref().is_none_or(|tenant| one.about.tenant == *tenant));
        // The newest of a name stands first; one that was replaced stays as long as somebody uses it.
        found.dedup_by(|later, first| later.about.tenant == first.about.tenant);
        match found.as_slice() {
            [one] => Ok(Some(Arc::new(store.look_into(one).map_err(failure(path))?))),
            [] => {
                let what = format!("there is no baseline {name} in {}", path.display());
                Err(Failure::new(Exit::Failed, what)
                    .advise("See `dwcp baseline list`, or leave --baseline out: then all pages travel."))
            }
            several => {
                let tenants: Vec<_> = several.iter().map(|one| one.about.tenant.as_str()).collect();
                let what = format!("{name} is the name of baselines of several tenants: {}", tenants.join(", "));
                Err(Failure::new(Exit::Failed, what).advise("Say which one with --baseline-tenant."))
            }
        }
    }
}
