//! `dwcp estimate`: what a transfer would cost, without one.

mod args;
mod told;

use std::num::NonZeroU16;
use std::sync::Arc;

use dwcp_core::Guest;
use dwcp_core::guest::{ImageSource, OldPages, Rounds};
use dwcp_core::net::{EstimateConfig, estimate};
use dwcp_core::session::{ShadowFill, SourceConfig};

pub(crate) use self::args::EstimateArgs;
use self::told::{Asked, Told};
use crate::exit::{Exit, Failure};
use crate::report::Report;
use crate::send::STORE_LIMIT;

/// `dwcp estimate`.
pub(crate) fn run(args: &EstimateArgs, report: &Report) -> Result<Exit, Failure> {
    let (guest, mut config) = prepare(args)?;
    let layout = guest.layout().clone();
    let baseline = args.baseline.look()?;
    let baseline = baseline.into_iter().next();
    let held = baseline.as_ref().map_or(0, |baseline| baseline.about().pages);
    config.baseline = baseline.map(|baseline| -> Arc<dyn OldPages> { baseline });
    let asked = Asked { args, held, bytes: layout.bytes(), cores: config.cores, whole: config.sample.is_none() };
    let told = Told::of(&asked, &estimate(guest, &config)?);
    report.say(&told.lines());
    report.event("summary", &told);
    Ok(told.exit())
}

/// What would be sent, opened as `dwcp send` opens it, and how.
fn prepare(args: &EstimateArgs) -> Result<(Arc<dyn Guest>, EstimateConfig), Failure> {
    let one = if let [file] = args.files.as_slice() { Some(ImageSource::open(file)?) } else { None };
    if one.is_none() && args.dirty_rate.is_some() {
        let what = "--dirty-rate was given with several snapshots, which tell themselves what is written";
        return Err(Failure::new(Exit::Usage, what).advise("Leave it out, or name one image."));
    }
    let zeros = one.as_ref().map(ImageSource::holes);
    let sample = one.as_ref().filter(|_| !args.whole).map(|_| args.sample);
    let guest: Arc<dyn Guest> = match one {
        Some(image) => Arc::new(image),
        None => Arc::new(Rounds::open(&args.files)?),
    };
    let cores = args.cores.or_else(|| {
        let cores = std::thread::available_parallelism().ok()?;
        NonZeroU16::new(u16::try_from(cores.get()).unwrap_or(u16::MAX))
    });
    let defaults = SourceConfig::default();
    let source = SourceConfig {
        lanes: args.lanes.get(),
        downtime_budget: args.budget(),
        // A long pause is one above the budget, and told as that with its figure; it says nothing of whether rounds shrink.
        pause_limit: STORE_LIMIT,
        effort: args.effort.policy(),
        // As for `dwcp send`: one image is sent once.
        shadow_bytes: if args.files.len() > 1 { args.shadow.of(guest.layout().bytes()) } else { 0 },
        shadow_fill: ShadowFill::First,
        ..defaults
    };
    let config = EstimateConfig {
        source,
        link: args.link.0,
        rtt: args.rtt,
        cores: cores.unwrap_or(NonZeroU16::MIN),
        written_pages: args.dirty_rate.unwrap_or(0),
        device_state: args.device_state.unwrap_or(0),
        sample,
        zeros,
        baseline: None,
    };
    Ok((guest, config))
}
