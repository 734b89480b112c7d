//! `dwcp baseline`: earlier states of guests that both ends of a transfer hold.

mod args;
mod files;
mod keep;
mod key;
mod shelf;
mod told;
mod use_of;

use std::collections::BTreeSet;
use std::path::Path;

use dwcp_core::baseline::{About, BaselineError, BaselineStore, Damage, Limits, Progress, Summary};
use dwcp_core::wire::Name;
use dwcp_core::{Guest, RegionId};
use indicatif::{ProgressBar, ProgressStyle};

use self::args::{AddArgs, GcArgs, OfTenantArgs, OneArgs, StoreArgs, VerifyArgs};
pub(crate) use self::args::{BaselineArgs, BaselineCommand};
use self::files::Files;
pub(crate) use self::keep::{KeepBaseline, Keeper};
pub(crate) use self::shelf::Shelf;
use self::told::{AddedSummary, CollectedSummary, Ranges, Shown, ShownSummary, Told};
pub(crate) use self::use_of::UseOfBaseline;
use crate::exit::{Exit, Failure};
use crate::place::must_be_folder;
use crate::report::Report;
use crate::state;
use crate::units;

/// `dwcp baseline`.
pub(crate) fn run(args: BaselineArgs, report: &Report) -> Result<Exit, Failure> {
    match args.command {
        BaselineCommand::Add(args) => add(args, report),
        BaselineCommand::List(args) => list(&args, report),
        BaselineCommand::Show(args) => show(&args, report),
        BaselineCommand::Verify(args) => verify(&args, report),
        BaselineCommand::Gc(args) => collect(&args, report),
    }
}

/// A store that must be there: a mistyped path is no empty store.
fn open(args: &StoreArgs) -> Result<BaselineStore, Failure> {
    must_be_folder(&args.store, "Name with --store the one given to `dwcp baseline add`.")?;
    BaselineStore::open(&args.store, key::load(&args.key_file)?, Limits::default()).map_err(failure(&args.store))
}

fn add(args: AddArgs, report: &Report) -> Result<Exit, Failure> {
    let StoreArgs { store: path, key_file } = args.store;
    // The files first: nothing is made for an image that is not there.
    let files = Files::open(args.files)?;
    if args.make_key && key::make(&key_file)? {
        report.say(&format!("made the key {}; nodes that share these baselines need the same", key_file.display()));
    }
    let key = key::load(&key_file)?;
    state::make(&path)?;
    let limits = Limits { bytes: args.limit, ..Limits::default() };
    let store = BaselineStore::make(&path, key, limits).map_err(failure(&path))?;
    warn_busy(&store, &path, report)?;
    let bar = bar(report, "adding", files.layout().pages());
    let added = store.add(&args.tenant, &args.name, &files, &mut |pages| bar.set_position(pages));
    bar.finish_and_clear();
    let told = AddedSummary::of(&args.tenant, &args.name, &added.map_err(failure(&path))?);
    report.say(&told.line());
    report.event("summary", &told);
    Ok(Exit::Ok)
}

/// Waiting without a word would look like a hang.
fn warn_busy(store: &BaselineStore, path: &Path, report: &Report) -> Result<(), Failure> {
    if store.is_busy().map_err(failure(path))? {
        report.warn(&format!("another process adds to {} or collects there; waiting for it", path.display()));
    }
    Ok(())
}

fn bar(report: &Report, what: &'static str, pages: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:12} {bar:30} {percent:>3}% {eta}");
    let bar = report.bars.add(ProgressBar::new(pages).with_prefix(what));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What is there, and of which name or tenant. What cannot be read is told, and counted.
fn listed(
    store: &BaselineStore,
    of: &OfTenantArgs,
    name: Option<&Name>,
    report: &Report,
) -> Result<(Vec<Summary>, usize), Failure> {
    let listing = store.list().map_err(failure(&of.store.store))?;
    for (_, error) in &listing.damaged {
        report.warn(&format!("warning: {error}; {}", advice(error)));
    }
    let (tenant, store) = (of.tenant.as_ref(), of.store.store.as_path());
    let mut baselines = listing.baselines;
    if (tenant.is_some() || name.is_some()) && !baselines.iter().any(|one| is_of(one, tenant, name)) {
        return Err(unknown(store, tenant, name, &baselines).advise(SEE_LIST));
    }
    baselines.retain(|one| is_of(one, tenant, name));
    Ok((baselines, listing.damaged.len()))
}

/// What to do about a manifest that cannot be used.
fn advice(error: &BaselineError) -> &'static str {
    match error {
        BaselineError::Damaged { damage: Damage::Directory, .. } => {
            "nothing of a store is one: see whose it is, and move it away"
        }
        error if error.is_damage() => {
            "it is of no use any more: `dwcp baseline gc` removes it, then add its image again"
        }
        _ => "it may be whole: `dwcp baseline gc` leaves it, and what it may need; remove the file if it stays so",
    }
}

/// What to do when a baseline is not there.
const SEE_LIST: &str = "See `dwcp baseline list`.";

/// Whether a baseline is of this tenant and has this name, of those that are named.
fn is_of(one: &Summary, tenant: Option<&Name>, name: Option<&Name>) -> bool {
    tenant.is_none_or(|tenant| one.about.tenant == *tenant) && name.is_none_or(|name| one.about.name == *name)
}

/// There is no such baseline in a store that has these: a misspelt tenant is told apart from a misspelt name.
fn unknown(store: &Path, tenant: Option<&Name>, name: Option<&Name>, all: &[Summary]) -> Failure {
    let shown = store.display();
    let of_tenant = all.iter().any(|one| is_of(one, tenant, None));
    let what = match (tenant, name) {
        (Some(tenant), Some(name)) if of_tenant => format!("tenant {tenant} has no baseline {name} in {shown}"),
        (None, Some(name)) => format!("there is no baseline {name} in {shown}"),
        (Some(tenant), _) => format!("there is no baseline of tenant {tenant} in {shown}; {}", tenants(all)),
        (None, None) => format!("there is no baseline in {shown}"),
    };
    Failure::new(Exit::Failed, what)
}

/// Whose baselines a store has.
fn tenants(all: &[Summary]) -> String {
    let names: BTreeSet<&str> = all.iter().map(|one| one.about.tenant.as_str()).collect();
    if names.is_empty() {
        return "it has none of any tenant".to_owned();
    }
    format!("it has some of: {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// Says of what is damaged what to do. How many are.
fn tell_damaged(baselines: &[Summary], report: &Report) -> usize {
    let damaged = baselines.iter().filter_map(|one| Some((one, one.damage.as_ref()?)));
    let mut count = 0;
    for (one, (file, damage)) in damaged {
        let About { tenant, name, .. } = &one.about;
        report.warn(&format!(
            "warning: {name} of tenant {tenant} is damaged and cannot be used: {file}: {damage}; add its image again"
        ));
        count += 1;
    }
    count
}

fn list(args: &OfTenantArgs, report: &Report) -> Result<Exit, Failure> {
    let store = open(&args.store)?;
    let (baselines, unreadable) = listed(&store, args, None, report)?;
    let damaged = unreadable + tell_damaged(&baselines, report);
    if baselines.is_empty() {
        report.say(&format!("there is no baseline in {}", args.store.store.display()));
    }
    let shown = Shown::all(&baselines);
    for one in &shown {
        report.say(&one.line());
        report.event("baseline", one);
    }
    let bytes = store.bytes().map_err(failure(&args.store.store))?;
    if !shown.is_empty() {
        report.say(&format!("{} on the disk in all", units::bytes(bytes)));
    }
    let (baselines, exit, bytes_disk) = (shown.len(), told::exit_of(damaged), Some(bytes));
    report.event("summary", &Told { verdict: exit.word(), baselines, damaged, bytes_disk, damaged_pages: None });
    Ok(exit)
}

fn show(args: &OneArgs, report: &Report) -> Result<Exit, Failure> {
    let store = open(&args.of.store)?;
    let (baselines, _) = listed(&store, &args.of, Some(&args.name), report)?;
    let shown = Shown::all(&baselines);
    let current: Vec<_> = shown.iter().filter(|one| !one.replaced).collect();
    let [one] = current.as_slice() else {
        let tenants: Vec<_> = current.iter().map(|one| one.tenant.as_str()).collect();
        let what = format!("{} is the name of baselines of several tenants: {}", args.name, tenants.join(", "));
        return Err(Failure::new(Exit::Failed, what).advise("Say which one with --tenant."));
    };
    for (what, value) in one.lines() {
        report.say(&format!("{what:<9} {value}"));
    }
    let exit = told::exit_of(usize::from(one.damage.is_some()));
    report.event("summary", &ShownSummary { verdict: exit.word(), shown: one });
    if let Some(damage) = &one.damage {
        report.warn(&format!("warning: it is damaged and cannot be used: {damage}; add its image again"));
    }
    Ok(exit)
}

fn verify(args: &VerifyArgs, report: &Report) -> Result<Exit, Failure> {
    let store = open(&args.of.store)?;
    let (baselines, unreadable) = listed(&store, &args.of, args.name.as_ref(), report)?;
    let (mut damaged, mut damaged_pages) = (unreadable, 0);
    let mut read = 0;
    for summary in &baselines {
        let Some(pages) = verify_one(&store, summary, &args.of.store.store, report)? else { continue };
        read += 1;
        damaged += usize::from(pages > 0);
        damaged_pages += pages;
    }
    let exit = told::exit_of(damaged);
    let baselines = read;
    let damaged_pages = Some(damaged_pages);
    report.event("summary", &Told { verdict: exit.word(), baselines, damaged, bytes_disk: None, damaged_pages });
    Ok(exit)
}

/// Reads one baseline; how many of its pages are damaged. `None`: somebody has removed it since it was listed.
fn verify_one(store: &BaselineStore, summary: &Summary, path: &Path, report: &Report) -> Result<Option<u64>, Failure> {
    let about = &summary.about;
    let shown = format!("{} of tenant {}", about.name, about.tenant);
    let mut ranges = Ranges::default();
    let mut first = None;
    let bar = bar(report, "verifying", about.pages);
    let whole = match store.look_into(summary) {
        Ok(baseline) => baseline.verify(&mut |progress| match progress {
            Progress::Read { pages } => bar.set_position(pages),
            Progress::Damaged { region: RegionId(region), page, error } => {
                ranges.add(region, page);
                first.get_or_insert_with(|| error.to_string());
            }
        }),
        Err(error @ (BaselineError::Damaged { .. } | BaselineError::Io { .. })) => {
            first = Some(error.to_string());
            Ok(0)
        }
        Err(BaselineError::Unknown { .. }) => {
            bar.finish_and_clear();
            report.say(&format!("{shown}: it was removed meanwhile, and was not read"));
            return Ok(None);
        }
        Err(error) => Err(error),
    };
    bar.finish_and_clear();
    let damaged = about.pages.saturating_sub(whole.map_err(failure(path))?);
    match first {
        None => report.say(&format!("{shown}: all {} pages are whole", about.pages)),
        Some(error) => {
            report.warn(&format!("{shown}: {damaged} of {} pages are damaged{ranges}", about.pages));
            report.warn(&format!("       {error}"));
            report.warn(
                "       Add its image again: what is damaged is stored anew. If that happens again, look at the disk.",
            );
        }
    }
    report.event("baseline", &told::Verified::of(summary, damaged));
    Ok(Some(damaged))
}

fn collect(args: &GcArgs, report: &Report) -> Result<Exit, Failure> {
    let store = open(&args.store)?;
    let path = &args.store.store;
    let named = |one: &Summary, name: &Name| args.tenant.as_ref() == Some(&one.about.tenant) && one.about.name == *name;
    let listing = store.list().map_err(failure(path))?;
    if let Some(name) = args.remove.iter().find(|name| !listing.baselines.iter().any(|one| named(one, name))) {
        let mut failure = unknown(path, args.tenant.as_ref(), Some(name), &listing.baselines).advise(SEE_LIST);
        failure.what.push_str("; nothing was removed");
        if !listing.damaged.is_empty() {
            failure =
                failure.advise("See `dwcp baseline list`: what cannot be read has no name, and goes with `gc` alone.");
        }
        return Err(failure);
    }
    warn_busy(&store, path, report)?;
    let mut unwanted = |one: &Summary| args.remove.iter().any(|name| named(one, name));
    let collected = store.collect(&mut unwanted, args.limit).map_err(failure(path))?;
    for one in &collected.removed {
        report.say(&format!("removed {} of tenant {}", one.about.name, one.about.tenant));
    }
    for (file, error) in &collected.damaged {
        report.warn(&format!("warning: removed {file}, which could not be read: {error}"));
    }
    for (_, error) in &collected.left {
        report.warn(&format!("warning: {error}; it is left there; see `dwcp baseline list`"));
    }
    for one in &collected.in_use {
        report.warn(&format!(
            "warning: {} of tenant {} is in use and stays; collect again later",
            one.about.name, one.about.tenant
        ));
    }
    let told = CollectedSummary::of(&collected);
    report.say(&told.line());
    report.event("summary", &told);
    Ok(Exit::Ok)
}

/// What to do where the header is gone.
const MADE_AGAIN: &str = "`dwcp baseline add` with the store's own key makes it again; another key is refused.";

/// What happened in a store, and what to do.
fn failure(store: &Path) -> impl Fn(BaselineError) -> Failure {
    move |error| {
        let shown = store.display();
        let exit = if error.is_damage() { Exit::Integrity } else { Exit::Failed };
        let failure = Failure::new(exit, format!("{shown}: {error}"));
        match error {
            BaselineError::NoStore => failure.advise("Name with --store the directory given to `dwcp baseline add`."),
            BaselineError::WrongKey => failure.advise("Name the key that the store was made with: --key-file, or --baseline-key of send and receive."),
            BaselineError::DamagedHeader => failure.advise(format!("Without it nothing in the store can be used. Bring the file back from a copy, or remove it. {MADE_AGAIN}")),
            BaselineError::NoHeader => {
                failure.advise(format!("Without it nothing in the store can be used. Bring the file back from a copy. {MADE_AGAIN}"))
            }
            BaselineError::NoneOpened => failure.advise(
                "Nothing was changed. Name the key that the store was made with, or bring the file back from a copy. Where neither \
                 is left, add the images again to a new store.",
            ),
            BaselineError::Format { found, .. } if found < dwcp_core::baseline::FORMAT => failure.advise(
                "An older version of dwcp made it, and nothing of it is read: add the images again to a new store, then \
                 remove this one.",
            ),
            BaselineError::Format { ref file, .. } => failure.advise(format!(
                "Use the version of dwcp that made it. If none newer was ever used here, that file is damaged: remove it.{}",
                if file == "store" { format!(" {MADE_AGAIN}") } else { String::new() }
            )),
            BaselineError::OverLimit { .. } => failure.advise(
                "Nothing was added. Make room with `dwcp baseline gc --limit SIZE` or --remove, or allow more with --limit.",
            ),
            BaselineError::DiskFull { .. } => {
                failure.advise("Nothing was added. Make room on that disk, or with `dwcp baseline gc --limit SIZE`.")
            }
            BaselineError::TooLarge { .. } => failure.advise("Leave it without a baseline; it can be sent all the same."),
            BaselineError::Guest(error) => Failure::from(error),
            BaselineError::Damaged { .. } => failure.advise("See `dwcp baseline verify`."),
            BaselineError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                failure.advise("Run as the user whose store it is, or give this user the right to it.")
            }
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use dwcp_core::Layout;
    use dwcp_core::baseline::StoreKey;
    use dwcp_core::guest::Memory;

    use super::*;

    #[test]
    fn what_was_removed_before_its_turn_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = BaselineStore::make(folder.path(), StoreKey::new(&[1; 32]), Limits::default()).unwrap();
        let memory = Memory::new(Layout::new(&[4096]).unwrap());
        memory.write(RegionId(0), 0, &[1; 4096]).unwrap();
        let name = |text| Name::new(text).unwrap();
        store.add(&name("web"), &name("vm1"), &memory, &mut |_| {}).unwrap();
        let listed = store.list().unwrap().baselines;
        let verified = || verify_one(&store, &listed[0], folder.path(), &Report::new(true)).unwrap();
        assert_eq!(verified(), Some(0), "no page is damaged");
        store.collect(&mut |_| true, None).unwrap();
        assert_eq!(verified(), None);
    }
}
