use std::num::{NonZeroU16, NonZeroU64};

use dwcp_core::net::{Advice, Estimate};
use dwcp_core::session::Verdict;
use serde::Serialize;

use super::EstimateArgs;
use crate::exit::Exit;
use crate::methods::{self, Methods};
use crate::report::{approximate, rounded};
use crate::units;

/// A link or a core that is busy for so much of the time is what limits.
const LIMITS: f64 = 0.8;
/// Below that neither is what the transfer waits for.
const IDLES: f64 = 0.5;

/// What was asked for.
pub(super) struct Asked<'a> {
    pub(super) args: &'a EstimateArgs,
    /// Pages of a baseline that are not zeros.
    pub(super) held: u64,
    pub(super) bytes: u64,
    pub(super) cores: NonZeroU16,
    /// Nothing was left out by choice.
    pub(super) whole: bool,
}

/// What makes a transfer take as long as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Limit {
    Link,
    Cores,
    /// Each waits for the other in turn.
    Both,
    /// Neither: round trips, and the windows of lanes.
    Latency,
}

/// What would help a guest that writes, each alone; null where that would not, or where nothing has to.
#[derive(Serialize)]
struct Advised {
    /// For `--downtime`.
    downtime_ms: Option<u128>,
    /// For `--link`, in bytes a second.
    link_bytes_s: Option<u64>,
    /// For `--dirty-rate`.
    dirty_pages_s: Option<u64>,
}

impl Advised {
    fn of(advice: &Advice) -> Self {
        Self {
            downtime_ms: advice.budget.map(|budget| budget.as_millis()),
            link_bytes_s: advice.link.map(NonZeroU64::get),
            dirty_pages_s: advice.written_pages,
        }
    }

    /// As options of this command.
    fn words(&self) -> Option<String> {
        let budget = self.downtime_ms.map(|ms| format!("--downtime {ms}ms"));
        let link = self.link_bytes_s.map(|bytes| format!("--link {}", units::link(bytes)));
        let writes = self
            .dirty_pages_s
            .map(|pages| format!("--dirty-rate {pages} ({}/s)", units::bytes(pages.saturating_mul(4096))));
        let options: Vec<_> = [budget, link, writes].into_iter().flatten().collect();
        (!options.is_empty()).then(|| format!("it would fit with {}; each was tried alone", options.join(", or ")))
    }
}

/// The answer; the last line of `--json`.
#[derive(Serialize)]
pub(super) struct Told {
    verdict: &'static str,
    bytes_guest: u64,
    /// Extents, as `dwcp send` tells it.
    bytes_wire: u64,
    /// What stands around them on the link, and lane 0 in both directions.
    bytes_tls: u64,
    bytes_packets: u64,
    bytes_control: u64,
    bytes_answers: u64,
    saved_pct: f64,
    saved_pct_without_zero: Option<f64>,
    rounds: usize,
    pages_held: u64,
    pages_resent: u64,
    seconds: f64,
    first_round_s: f64,
    /// Null where it does not converge.
    downtime_ms: Option<f64>,
    converges: bool,
    limit: Limit,
    link_busy_pct: f64,
    cores_busy_pct: f64,
    cores: u16,
    /// Of one core.
    encode_mb_s: f64,
    bytes_read: u64,
    bytes_to_read: u64,
    codec: Methods,
    error: Option<String>,
    advice: Advised,
    #[serde(skip)]
    exit: Exit,
    #[serde(skip)]
    text: String,
}

impl Told {
    pub(super) fn of(asked: &Asked<'_>, estimate: &Estimate) -> Self {
        let progress = &estimate.progress;
        let limit = match (estimate.link_busy, estimate.cores_busy) {
            (link, cores) if link.max(cores) < IDLES => Limit::Latency,
            (link, cores) if link.max(cores) < LIMITS => Limit::Both,
            (link, cores) if link >= cores => Limit::Link,
            _ => Limit::Cores,
        };
        let converges = estimate.not_converging.is_none();
        let exit = match progress.downtime {
            _ if estimate.not_converging.as_ref().is_some_and(Verdict::is_over_budget) => Exit::OverBudget,
            _ if !converges => Exit::NotConverged,
            Some(downtime) if asked.args.has_budget() && downtime > asked.args.budget() => Exit::OverBudget,
            _ => Exit::Ok,
        };
        let percent = |share: f64| rounded(share * 100.0, 10.0);
        let mut told = Self {
            verdict: exit.word(),
            bytes_guest: asked.bytes,
            bytes_wire: progress.wire_bytes,
            bytes_tls: estimate.tls_bytes,
            bytes_packets: estimate.packet_bytes,
            bytes_control: estimate.control_bytes,
            bytes_answers: estimate.answer_bytes,
            saved_pct: percent(progress.saved()),
            saved_pct_without_zero: progress.methods.saved_without_zero().map(percent),
            rounds: progress.rounds.iter().filter(|round| round.pages > 0).count(),
            pages_held: asked.held,
            pages_resent: progress.pages_resent,
            seconds: rounded(estimate.elapsed.as_secs_f64(), 1e3),
            first_round_s: rounded(estimate.first_round.as_secs_f64(), 1e3),
            downtime_ms: progress.downtime.filter(|_| converges).map(|time| rounded(time.as_secs_f64() * 1e3, 10.0)),
            converges,
            limit,
            link_busy_pct: percent(estimate.link_busy),
            cores_busy_pct: percent(estimate.cores_busy),
            cores: asked.cores.get(),
            encode_mb_s: rounded(approximate(estimate.encode_rate) / 1e6, 10.0),
            bytes_read: estimate.looked_at,
            bytes_to_read: estimate.to_look_at,
            codec: Methods::of(&progress.methods),
            error: estimate.not_converging.as_ref().map(|verdict| verdict.finding().to_string()),
            advice: Advised::of(&estimate.advice),
            exit,
            text: String::new(),
        };
        told.text = told.told(asked, estimate);
        told
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// For people.
    pub(super) fn lines(&self) -> String {
        self.text.clone()
    }

    fn told(&self, asked: &Asked<'_>, estimate: &Estimate) -> String {
        let args = asked.args;
        let names: Vec<_> = args.files.iter().map(|file| file.display().to_string()).collect();
        let without =
            self.saved_pct_without_zero.map_or(String::new(), |saved| format!(", {saved:.1} % without zero pages"));
        let mut lines = vec![
            format!("{}: {}, estimated; nothing was sent", names.join(", "), units::bytes(self.bytes_guest)),
            format!("  looked at    {}", self.looked_at(asked)),
            format!("  on the wire  {} ({:.1} % saved{without})", units::bytes(self.bytes_wire), self.saved_pct),
            format!(
                "  around it    {} for TLS, {} for TCP, IP and Ethernet, {} of lane 0",
                units::bytes(self.bytes_tls),
                units::bytes(self.bytes_packets),
                units::bytes(self.bytes_control + self.bytes_answers)
            ),
            format!(
                "  time         {:.2} s in {} round(s), the first {:.2} s",
                self.seconds, self.rounds, self.first_round_s
            ),
            format!("  limit        {}", self.limit_words()),
            format!("  downtime     {}", self.downtime_words(args)),
        ];
        if matches!(self.exit, Exit::NotConverged | Exit::OverBudget) {
            let words = self.advice.words();
            let none = || "no budget, link or rate of writes makes it fit alone; change several of them".into();
            lines.push(format!("  advice       {}", words.unwrap_or_else(none)));
        }
        if self.pages_held > 0 {
            lines.push(format!("  baseline     {}", self.baseline_words()));
        }
        if args.dirty_rate.is_some_and(|rate| rate > 0) {
            lines.push(
                "  writes       pages written again are taken to be new ones that pack as all do, without deltas"
                    .into(),
            );
        }
        lines.push(methods::table(&estimate.progress.methods));
        lines.join("\n")
    }

    fn looked_at(&self, asked: &Asked<'_>) -> String {
        let (read, all) = (units::bytes(self.bytes_read), units::bytes(self.bytes_to_read));
        if asked.whole || self.bytes_read >= self.bytes_to_read {
            return format!("{read}, all that is no hole");
        }
        let part = approximate(self.bytes_read) / approximate(self.bytes_to_read.max(1)) * 100.0;
        format!(
            "{read} of {all} that are no holes ({part:.1} %), evenly spread; the rest is taken to be alike (--whole)"
        )
    }

    fn limit_words(&self) -> String {
        let what = match self.limit {
            Limit::Link => "the link",
            Limit::Cores => "the cores: more of them, or less --effort, would be faster",
            Limit::Both => "link and cores in turn",
            Limit::Latency => "round trips and windows; link and cores have time to spare",
        };
        format!(
            "{what} (link {:.0} %, {} core(s) {:.0} % busy; one packs {:.0} MB/s)",
            self.link_busy_pct, self.cores, self.cores_busy_pct, self.encode_mb_s
        )
    }

    fn downtime_words(&self, args: &EstimateArgs) -> String {
        match (&self.error, self.downtime_ms) {
            (Some(error), _) => error.clone(),
            (None, Some(ms)) => {
                let budget = args.budget();
                let over = match self.exit {
                    Exit::OverBudget => ": THE BUDGET IS EXCEEDED",
                    _ if ms > budget.as_secs_f64() * 1e3 => ", more than that",
                    _ => "",
                };
                format!(
                    "{ms:.0} ms for the last round and the switch-over, without the receiver's disk (--downtime {} ms{over})",
                    budget.as_millis()
                )
            }
            (None, None) => "none".into(),
        }
    }

    fn baseline_words(&self) -> String {
        format!(
            "{} at the receiver, which lays them down meanwhile",
            units::bytes(self.pages_held.saturating_mul(4096))
        )
    }
}
