//! Progress for a person: a bar on a terminal, a line now and then otherwise.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::MetricRow;
use crate::train::Progress;

/// Time between log lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// A bar, hidden where standard error is no terminal.
pub fn bar(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What training shows: loss, spread of the representation, speed.
pub struct TrainProgress {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl TrainProgress {
    /// From step `done` of `total`.
    pub fn new(done: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} eta {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, last_line: None }
    }
}

impl Progress for TrainProgress {
    fn step(&mut self, done: u64, total: u64, row: &MetricRow) {
        let [loss, std, speed] =
            [row.loss, row.representation_std, row.images_per_s].map(|v| v.unwrap_or(f64::NAN));
        let text = format!("epoch {:.2} loss {loss:.3} std {std:.3} {speed:.0} images/s", row.epoch);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(text);
        } else if done == total || self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            tracing::info!("step {done}/{total} {text}");
        }
    }

    fn verdict(&mut self, row: &MetricRow) {
        let value = |v: Option<f64>| v.unwrap_or(f64::NAN);
        let text = format!(
            "epoch {:.2} watched pictures: view retrieval {:.1} %, effective rank {:.1}, std {:.3}",
            row.epoch,
            100.0 * value(row.view_retrieval),
            value(row.effective_rank),
            value(row.representation_std)
        );
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tracing::info!("{text}"),
        }
    }
}
