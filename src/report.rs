//! What a command says: lines for people on stdout, or JSON lines; trouble on stderr in either case.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use dwcp_core::session::Progress;
use dwcp_hde::{Method, MethodStats, Stats};
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;

use crate::dictionary::Used;
use crate::exit::{Exit, Failure};
use crate::methods::{self, Methods};
use crate::units;

/// Version of the JSON lines. Fields may be added within one; none changes or goes.
const SCHEMA: u8 = 1;

/// Where a command tells what happens.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    json: bool,
    /// Lines and bars share the terminal.
    pub(crate) bars: MultiProgress,
}

#[derive(Serialize)]
struct Line<'a, T> {
    schema: u8,
    event: &'a str,
    #[serde(flatten)]
    fields: &'a T,
}

#[derive(Serialize)]
struct FailedSummary<'a> {
    verdict: &'a str,
    error: &'a str,
    advice: Option<&'a str>,
}

impl Report {
    /// Bars are drawn only for people who look at a terminal.
    pub(crate) fn new(json: bool) -> Self {
        let draw = !json && io::stderr().is_terminal();
        let target = if draw { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { json, bars: MultiProgress::with_draw_target(target) }
    }

    /// A JSON line, if those are wanted.
    pub(crate) fn event<T: Serialize>(&self, event: &str, fields: &T) {
        if !self.json {
            return;
        }
        match serde_json::to_string(&Line { schema: SCHEMA, event, fields }) {
            Ok(line) => self.out(&line),
            Err(error) => self.warn(&format!("a JSON line cannot be written: {error}")),
        }
    }

    /// A line for people, if no JSON is wanted.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            self.out(text);
        }
    }

    /// Something that an operator must see in any case.
    pub(crate) fn warn(&self, text: &str) {
        self.bars.suspend(|| {
            // Nothing is left to do when stderr is closed.
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// The end of a command that failed before it had figures to tell.
    pub(crate) fn failed(&self, failure: &Failure) -> Exit {
        self.trouble(failure);
        let fields =
            FailedSummary { verdict: failure.exit.word(), error: &failure.what, advice: failure.advice.as_deref() };
        self.event("summary", &fields);
        failure.exit
    }

    /// What happened and what to do, on stderr.
    pub(crate) fn trouble(&self, failure: &Failure) {
        self.warn(&format!("error: {}", failure.what));
        if let Some(advice) = &failure.advice {
            self.warn(&format!("       {advice}"));
        }
    }

    fn out(&self, line: &str) {
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            // A reader that went away (`| head`) is no error of the transfer.
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        });
    }
}

/// Whether stderr may be coloured. See <https://no-color.org>.
pub(crate) fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The figures of a transfer at its source, as every summary names them. Those of a transfer that
/// never began are all unknown.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    root_source: Option<String>,
    root_sink: Option<String>,
    rounds: Option<usize>,
    resent_pages: Option<u64>,
    bytes_guest: Option<u64>,
    bytes_wire: Option<u64>,
    /// What the receiver had from before, of an earlier process or session: neither sent nor saved by this one.
    bytes_held: Option<u64>,
    saved_pct: Option<f64>,
    mb_s: Option<f64>,
    downtime_ms: Option<f64>,
    seconds: Option<f64>,
    /// What the codec did; nothing, if nothing went as extents.
    codec: Methods,
    /// Null: none was to be used.
    dictionary: Option<Used>,
    #[serde(skip)]
    methods: Stats,
}

impl Figures {
    /// With what was done with a dictionary.
    pub(crate) fn with_dictionary(self, dictionary: Option<Used>) -> Self {
        Self { dictionary, ..self }
    }

    pub(crate) fn of(progress: &Progress, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-6);
        let looked_at = progress.pages_read.saturating_mul(4096);
        let sent = without_held(progress);
        Self {
            root_source: progress.root.map(|root| root.to_string()),
            root_sink: progress.peer_root.map(|root| root.to_string()),
            // Sweeps that found nothing to send are no rounds.
            rounds: Some(progress.rounds.iter().filter(|round| round.pages > 0).count()),
            resent_pages: Some(progress.pages_resent),
            bytes_guest: Some(progress.guest_bytes),
            bytes_wire: Some(progress.wire_bytes),
            bytes_held: Some(progress.pages_held.saturating_mul(4096).min(progress.guest_bytes)),
            saved_pct: Some(rounded(sent.saved() * 100.0, 10.0)),
            mb_s: Some(rounded(approximate(looked_at) / 1e6 / seconds, 10.0)),
            downtime_ms: progress.downtime.map(|downtime| rounded(downtime.as_secs_f64() * 1e3, 1e3)),
            seconds: Some(rounded(seconds, 1e3)),
            codec: Methods::of(&sent.methods),
            dictionary: None,
            methods: sent.methods,
        }
    }

    /// The same for people.
    pub(crate) fn lines(&self) -> String {
        let downtime = self.downtime_ms.map_or(String::new(), |ms| format!(", last round and switch-over {ms:.0} ms"));
        format!(
            "  image        {}; {} round(s), {} pages sent again\n  on the wire  {} ({:.1} % saved){}\n  \
             time         {:.2} s, {:.0} MB/s{downtime}\n  root         {}, the same at both ends",
            units::bytes(self.bytes_guest.unwrap_or_default()),
            self.rounds.unwrap_or_default(),
            self.resent_pages.unwrap_or_default(),
            units::bytes(self.bytes_wire.unwrap_or_default()),
            self.saved_pct.unwrap_or_default(),
            from_before(self.bytes_held.unwrap_or_default()),
            self.seconds.unwrap_or_default(),
            self.mb_s.unwrap_or_default(),
            self.root_source.as_deref().unwrap_or("-"),
        ) + &self.dictionary.as_ref().map_or(String::new(), |used| format!("\n{}", used.line()))
            + &self.methods_lines()
    }

    /// By method, if anything went as extents.
    fn methods_lines(&self) -> String {
        if self.methods.pages() == 0 {
            return String::new();
        }
        let without = self.methods.saved_without_zero();
        let without =
            without.map_or(String::new(), |saved| format!("\n  without zero pages {:.1} % saved", saved * 100.0));
        format!("{without}\n{}", methods::table(&self.methods))
    }
}

/// A transfer that goes on, as if it had not looked at the pages that the sink had from before: that they do not travel again
/// is no doing of the codec.
fn without_held(progress: &Progress) -> Progress {
    let held = progress.pages_held.min(progress.methods.of(Method::Same).pages);
    let left_out = Stats::default().with(Method::Same, MethodStats::left_out(held));
    Progress {
        pages_read: progress.pages_read.saturating_sub(held),
        methods: progress.methods.since(&left_out),
        ..progress.clone()
    }
}

/// What stands behind the bytes on the wire, where some of the image was there before.
fn from_before(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(", beside {} that were there from before", units::bytes(bytes)) }
}

/// What a sink knows of the same transfer: it sees only what travels.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Received {
    root_source: Option<String>,
    root_sink: Option<String>,
    bytes_guest: u64,
    bytes_wire: u64,
    /// What was here from before: it did not travel this time.
    bytes_held: u64,
    seconds: f64,
}

impl Received {
    pub(crate) fn of(progress: &Progress, bytes_held: u64, elapsed: Duration) -> Self {
        Self {
            root_source: progress.peer_root.map(|root| root.to_string()),
            root_sink: progress.root.map(|root| root.to_string()),
            bytes_guest: progress.guest_bytes,
            bytes_wire: progress.wire_bytes,
            bytes_held,
            seconds: rounded(elapsed.as_secs_f64(), 1e3),
        }
    }

    /// Of a session that only answered a question about a guest of so many bytes.
    pub(crate) fn asked_about(self, bytes_guest: u64) -> Self {
        Self { bytes_guest, ..self }
    }

    /// The same for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}, {} on the wire{}, {:.2} s, root {}",
            units::bytes(self.bytes_guest),
            units::bytes(self.bytes_wire),
            from_before(self.bytes_held),
            self.seconds,
            self.root_sink.as_deref().unwrap_or("-"),
        )
    }
}

pub(crate) fn rounded(value: f64, places: f64) -> f64 {
    (value * places).round() / places
}

#[expect(clippy::as_conversions, reason = "a rate for humans; 53 bits are plenty")]
pub(crate) fn approximate(value: u64) -> f64 {
    value as f64
}
