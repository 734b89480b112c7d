//! One progress bar for each phase, when somebody looks.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::message::{Event, Figures};
use crate::report::Report;

/// The bars of a run.
#[derive(Debug)]
pub(super) struct Phases {
    bars: MultiProgress,
    bar: ProgressBar,
    name: &'static str,
}

impl Phases {
    pub(super) fn new(report: &Report) -> Self {
        Self { bars: report.bars.clone(), bar: ProgressBar::hidden(), name: "" }
    }

    pub(super) fn show(&mut self, event: &Event) {
        match event {
            Event::Filling { done, of } => self.set("fill", *done, *of, "keys"),
            Event::Verifying { done, of } => self.set("verification", *done, *of, "keys"),
            Event::Moving { figures } => self.moving(figures),
            _ => {}
        }
    }

    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
    }

    fn moving(&mut self, figures: &Figures) {
        match figures.phase.as_str() {
            "copying" => {
                let round = format!("round {}", figures.rounds.len() + 1);
                self.set("rounds", figures.pages_settled, figures.pages_settled + figures.pages_left, "pages");
                self.bar.set_message(round);
            }
            "pausing" | "committing" | "handing" => self.set("switch-over", 0, 0, ""),
            _ => {}
        }
    }

    fn set(&mut self, name: &'static str, done: u64, of: u64, unit: &'static str) {
        if self.name != name {
            self.bar.finish();
            self.name = name;
            self.bar = self.make(name, unit, of);
        }
        self.bar.set_length(of);
        self.bar.set_position(done);
    }

    /// A bar; a spinner when nobody can say how much there is to do.
    fn make(&self, name: &'static str, unit: &str, of: u64) -> ProgressBar {
        let spins = of == 0;
        let bar = self.bars.add(ProgressBar::new(of));
        let template = if spins {
            "{prefix:13} {spinner}".to_owned()
        } else {
            format!("{{prefix:13}} [{{bar:40}}] {{human_pos}}/{{human_len}} {unit} {{msg}}")
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name);
        if spins {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        bar
    }
}
