//! `--keep-baseline`: what a transfer ended with becomes a baseline at this end, so that the way back is warm.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use dwcp_core::baseline::{BaselineStore, Limits};
use dwcp_core::guest::ImageSource;
use dwcp_core::wire::{Digest, Name};
use serde::Serialize;
use tokio::sync::Mutex;

use super::{UseOfBaseline, failure, is_of, key, unknown};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupts;
use crate::report::Report;
use crate::{state, units};

/// Under which name.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeepBaseline {
    /// When the receiver has all of it, keep the image as a baseline of this name, in the store and for the tenant that are
    /// named; one of that name is replaced. If that fails it is told, and the transfer is good all the same
    #[arg(long, value_name = "NAME", requires = "baseline_store", requires = "baseline_tenant")]
    pub(crate) keep_baseline: Option<Name>,
}

/// Where images are kept, and as what.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    store: Arc<BaselineStore>,
    path: PathBuf,
    tenant: Name,
    name: Name,
    /// One after the other, in the order in which they arrived: the last one stands for the name.
    turn: Arc<Mutex<()>>,
}

#[derive(Serialize)]
struct Kept<'a> {
    transfer: &'a str,
    name: &'a str,
    tenant: &'a str,
    digest: Option<String>,
    stored_pages: u64,
    bytes_added: u64,
    error: Option<&'a str>,
}

impl Keeper {
    /// `None`: nothing is to be kept. Makes the store when there is none: a first transfer may be what fills it. A tenant that is
    /// new beside others is told, because it may be misspelt.
    pub(crate) fn open(keep: &KeepBaseline, args: &UseOfBaseline, report: &Report) -> Result<Option<Self>, Failure> {
        let UseOfBaseline { baseline_store, baseline_key, baseline_tenant, .. } = args;
        let (Some(name), Some(path), Some(key_file), Some(tenant)) =
            (&keep.keep_baseline, baseline_store, baseline_key, baseline_tenant)
        else {
            return Ok(None);
        };
        let key = key::load(key_file)?;
        state::make(path)?;
        let store = Arc::new(BaselineStore::make(path, key, Limits::default()).map_err(failure(path))?);
        let listed = store.list().map_err(failure(path))?.baselines;
        if !listed.is_empty() && !listed.iter().any(|one| is_of(one, Some(tenant), None)) {
            let what = unknown(path, Some(tenant), None, &listed).what;
            report.warn(&format!("note: {what}; what is kept will be the first of that tenant (--baseline-tenant)"));
        }
        Ok(Some(Self { store, path: path.clone(), tenant: tenant.clone(), name: name.clone(), turn: Arc::default() }))
    }

    /// Keeps an image with this root. What goes wrong is told; the transfer is over and good.
    pub(crate) async fn keep(&self, transfer: &str, image: PathBuf, root: Option<Digest>, report: &Report) {
        let _turn = self.turn.lock().await;
        let keeper = self.clone();
        let adding = tokio::task::spawn_blocking(move || keeper.add(&image, root));
        let added = adding.await.unwrap_or_else(|_| Err(Failure::new(Exit::Failed, "adding it panicked")));
        match added {
            Ok(added) => {
                let (name, tenant) = (self.name.as_str(), self.tenant.as_str());
                report.say(&format!(
                    "kept as baseline {name} of tenant {tenant}: {} more in {}",
                    units::bytes(added.bytes),
                    self.path.display()
                ));
                let digest = Some(added.digest.to_string());
                let (stored_pages, bytes_added) = (added.stored, added.bytes);
                report.event(
                    "baseline-kept",
                    &Kept { transfer, name, tenant, digest, stored_pages, bytes_added, error: None },
                );
            }
            Err(failure) => self.failed(transfer, &failure, report),
        }
    }

    /// As [`keep`](Self::keep), of a sender. A first signal is told what it waits for, a second one leaves: the image is the
    /// receiver's, and the store stays as it was.
    pub(crate) async fn keep_unless(
        &self,
        transfer: &str,
        image: PathBuf,
        root: Option<Digest>,
        report: &Report,
        interrupts: &mut Interrupts,
    ) {
        let keeping = self.keep(transfer, image, root, report);
        tokio::pin!(keeping);
        tokio::select! {
            () = &mut keeping => return,
            () = interrupts.next() => {}
        }
        report.warn(&format!(
            "the image is at the receiver; keeping it as baseline {} in {}, or waiting for another process that adds or \
             collects there. Again to leave at once",
            self.name,
            self.path.display()
        ));
        tokio::select! {
            () = &mut keeping => {}
            () = interrupts.next() => {
                let what = "this sender was stopped before all of it was stored";
                self.failed(transfer, &Failure::new(Exit::Failed, what), report);
            }
        }
    }

    /// Tells that an image is not kept, because its receiver was stopped before.
    pub(crate) fn stopped(&self, transfer: &str, report: &Report) {
        let what = "this receiver was stopped before all of it was stored".to_owned();
        self.failed(transfer, &Failure::new(Exit::Failed, what), report);
    }

    fn failed(&self, transfer: &str, failure: &Failure, report: &Report) {
        let (name, tenant, what) = (self.name.as_str(), self.tenant.as_str(), failure.what.as_str());
        let advice = failure.advice.as_deref();
        report.warn(&format!(
            "warning: the image arrived, but was not kept as baseline {name}: {what}\n         {}",
            advice.unwrap_or("Add it with `dwcp baseline add`, or let all of it travel next time.")
        ));
        let (digest, stored_pages, bytes_added) = (None, 0, 0);
        let kept = Kept { transfer, name, tenant, digest, stored_pages, bytes_added, error: Some(what) };
        report.event("baseline-kept", &kept);
    }

    fn add(&self, image: &Path, root: Option<Digest>) -> Result<dwcp_core::baseline::Added, Failure> {
        let Some(root) = root else {
            return Err(Failure::new(Exit::Failed, "it was handed over without its root being known here"));
        };
        let image = ImageSource::open(image)?;
        self.store.keep(&self.tenant, &self.name, &image, root, &mut |_| {}).map_err(failure(&self.path))
    }
}
