use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::baseline::UseOfBaseline;
use crate::cli::EffortArg;
use crate::exit::{self, Exit};
use crate::units::{self, Bandwidth, Percent};

const EXITS: [Exit; 6] = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::NotConverged, Exit::Integrity, Exit::OverBudget];
/// As of `dwcp send`.
const DOWNTIME: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
#[command(after_help = exit::help(&EXITS, "\
Examples:
  # an image at rest
  dwcp estimate vm1.mem --link 100mbit --rtt 40ms
  # a guest that writes
  dwcp estimate vm1.mem --link 1gbit --dirty-rate 20MiB/s --downtime 100ms
  # successive snapshots, as `dwcp send --round` sends them
  dwcp estimate t0.mem t1.mem t2.mem --link 1gbit
  # only what has changed since a baseline
  dwcp estimate vm1.mem --link 100mbit --baseline golden \\
      --baseline-store DIR --baseline-key base.key

Nothing is sent and nothing is written: the image is read, hashed and encoded as `dwcp send` does, and the link is \
computed. Of one image about --sample bytes are read, evenly spread, but 8 MiB at least; holes cost nothing. Several \
snapshots are read whole.

Run it on the host that would send: how fast that encodes is part of the answer. The receiver is taken to have the \
same baseline and to store as fast as pages come; dictionaries are left out."))]
pub(crate) struct EstimateArgs {
    /// The image; or snapshots of one guest, oldest first, of which only what differs would travel
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// What the link carries, or what `dwcp send` is limited to, such as 100mbit or 50MB a second
    #[arg(long, value_name = "RATE")]
    pub(crate) link: Bandwidth,
    /// The link's round trip, such as 40ms or 200us
    #[arg(long, default_value = "1ms", value_parser = round_trip)]
    pub(crate) rtt: Duration,
    /// What the running guest writes, in pages a second or a size a second, such as 5000 or 20MiB/s
    /// (not beside --baseline: what a guest writes is new to both ends)
    #[arg(long, value_name = "PAGES|SIZE/s", value_parser = dirty_rate, conflicts_with = "baseline")]
    pub(crate) dirty_rate: Option<u64>,
    /// How long the guest may stand still [default: 300ms]. If it would for longer, the verdict says so (not without
    /// --downtime or --dirty-rate: an image at rest stands still anyway)
    #[arg(long, value_parser = units::duration)]
    pub(crate) downtime: Option<Duration>,
    /// State of the guest's devices, which travels while it stands still; an image has none
    #[arg(long, value_name = "SIZE", value_parser = device_state)]
    pub(crate) device_state: Option<usize>,
    /// Cores that may encode [default: those of this machine]
    #[arg(long, value_parser = units::cores)]
    pub(crate) cores: Option<NonZeroU16>,
    /// Connections besides the control connection, 1 to 64
    #[arg(long, default_value = "4", value_parser = units::lanes)]
    pub(crate) lanes: NonZeroU16,
    /// How hard to compress
    #[arg(long, value_enum, default_value_t)]
    pub(crate) effort: EffortArg,
    /// Memory for what the receiver has already, as a share of the guest; used by several snapshots
    #[arg(long, default_value = "25%")]
    pub(crate) shadow: Percent,
    /// How much of one image to read, in pieces of 1 MiB; 8 MiB at least
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = units::size)]
    pub(crate) sample: u64,
    /// Read all of it
    #[arg(long, conflicts_with = "sample")]
    pub(crate) whole: bool,
    #[command(flatten)]
    pub(crate) baseline: UseOfBaseline,
    /// Print JSON lines; the last one is the summary
    #[arg(long)]
    pub(crate) json: bool,
}

impl EstimateArgs {
    /// How long the guest may stand still.
    pub(crate) fn budget(&self) -> Duration {
        self.downtime.unwrap_or(DOWNTIME)
    }

    /// Whether somebody minds when it stands still for longer.
    pub(crate) fn has_budget(&self) -> bool {
        self.downtime.is_some() || self.dirty_rate.is_some_and(|rate| rate > 0)
    }
}

/// As any duration; those of a local network are below a millisecond.
fn round_trip(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no round trip; write a number and us, ms or s, such as 40ms or 200us");
    match text.strip_suffix("us") {
        Some(number) => units::duration(&format!("{number}ms")).map(|time| time / 1000).map_err(|_| wrong()),
        None => units::duration(text).map_err(|_| wrong()),
    }
}

/// Pages a second; a size is so many pages.
fn dirty_rate(text: &str) -> Result<u64, String> {
    if let Ok(pages) = text.parse() {
        return Ok(pages);
    }
    let size = text.strip_suffix("/s").unwrap_or(text);
    let bytes = units::size(size).ok().or_else(|| size.parse::<Bandwidth>().ok().map(|rate| rate.0.get()));
    bytes.map(|bytes| bytes.div_ceil(4096)).ok_or_else(|| {
        format!(
            "`{text}` is no rate of writes; write pages a second, such as 5000, or a size and KiB, MiB, GiB, kB, MB or \
             GB, such as 20MiB/s"
        )
    })
}

/// As much as a transfer takes.
fn device_state(text: &str) -> Result<usize, String> {
    let most = dwcp_core::wire::limits::MAX_DEVICE_STATE;
    let bytes = units::size(text)?;
    let allowed = usize::try_from(bytes).ok().filter(|_| bytes <= most);
    allowed.ok_or_else(|| format!("`{text}` of device state is too much; a transfer takes 64MiB at most"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_writes_are_pages_or_sizes() {
        assert_eq!((dirty_rate("5000"), dirty_rate("0")), (Ok(5000), Ok(0)));
        assert_eq!(
            (dirty_rate("20MiB/s"), dirty_rate("20MiB"), dirty_rate("4096kB/s")),
            (Ok(5120), Ok(5120), Ok(1000))
        );
        for bad in ["", "x", "-1", "20M", "5/s/s", "1 GiB"] {
            assert!(dirty_rate(bad).unwrap_err().contains("20MiB/s"), "{bad}");
        }
    }

    #[test]
    fn round_trips_may_be_short_and_device_state_not_long() {
        assert_eq!(round_trip("200us"), Ok(Duration::from_micros(200)));
        assert_eq!(round_trip("40ms"), Ok(Duration::from_millis(40)));
        assert_eq!(
            (round_trip("0.5ms"), round_trip("0.5us")),
            (Ok(Duration::from_micros(500)), Ok(Duration::from_nanos(500)))
        );
        for bad in ["", "40", "us", "-1us", "1.ms"] {
            assert!(round_trip(bad).unwrap_err().contains("40ms or 200us"), "{bad}");
        }
        assert_eq!(device_state("64MiB"), Ok(64 << 20));
        assert!(device_state("65MiB").unwrap_err().contains("64MiB at most"));
        assert!(device_state("1MB").is_err());
    }
}
