use std::time::Duration;

use dwcp_core::session::{Phase, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::report::colours;
use crate::units;

/// A bar for each phase of one transfer.
#[derive(Debug)]
pub(crate) struct Bars {
    multi: MultiProgress,
    name: String,
    phase: Phase,
    bar: Option<ProgressBar>,
    /// Rounds begun when the bar was last given a length.
    rounds: usize,
}

impl Bars {
    pub(crate) fn new(multi: &MultiProgress, name: impl Into<String>) -> Self {
        Self { multi: multi.clone(), name: name.into(), phase: Phase::Offered, bar: None, rounds: 0 }
    }

    /// Draws what a source is at, at so many guest bytes a second.
    pub(crate) fn source(&mut self, progress: &Progress, rate: u64) {
        let round = progress.rounds.len() + 1;
        let bar = self.bar_of(progress.phase);
        if progress.phase != Phase::Copying {
            return;
        }
        let pages = progress.pages_left;
        if self.rounds != round || bar.length().is_none_or(|length| length < pages) {
            bar.set_length(pages);
            self.rounds = round;
        }
        bar.set_position(bar.length().unwrap_or(pages).saturating_sub(pages));
        bar.set_message(format!(
            "round {round}, {}/s, {} on the wire{}",
            units::bytes(rate),
            units::bytes(progress.wire_bytes),
            durable(progress)
        ));
    }

    /// Draws what a sink is at. It does not know how much is still to come.
    pub(crate) fn sink(&mut self, progress: &Progress) {
        let bar = self.bar_of(progress.phase);
        bar.set_message(format!("{} received{}", units::bytes(progress.wire_bytes), durable(progress)));
    }

    /// Removes the bar; the report follows.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn bar_of(&mut self, phase: Phase) -> ProgressBar {
        if phase != self.phase {
            self.end();
            self.phase = phase;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = self.multi.add(ProgressBar::no_length());
            bar.set_style(style(phase));
            bar.set_prefix(format!("{} {}", self.name, word(phase)));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.clone()
    }
}

/// What a crash of the receiver would not take.
fn durable(progress: &Progress) -> String {
    let bytes = progress.pages_durable * 4096;
    if bytes == 0 { String::new() } else { format!(", {} durable", units::bytes(bytes)) }
}

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Offered => "offered",
        Phase::Copying => "copying",
        Phase::Pausing => "pausing",
        Phase::Committing => "comparing and storing",
        Phase::Handing => "handing over",
        _ => "ending",
    }
}

fn style(phase: Phase) -> ProgressStyle {
    let template = match (phase, colours()) {
        (Phase::Copying, true) => "{prefix:24} {bar:30.cyan} {percent:>3}% {msg}",
        (Phase::Copying, false) => "{prefix:24} {bar:30} {percent:>3}% {msg}",
        (_, true) => "{prefix:24} {spinner:.cyan} {elapsed} {msg}",
        (_, false) => "{prefix:24} {spinner} {elapsed} {msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
