//! What the person who started the run sees: a bar an epoch, or plain lines where the
//! output is no terminal; a line for each test pass and each change in the cluster.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use tally_core::Core;
use tally_core::events::Committed;
use tally_worker::scores::{Scores, test_line};

/// How often a plain line is printed while training.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes: standard error.
pub struct Console {
    bar: Option<ProgressBar>,
    terminal: bool,
    epoch: u32,
    last_plain: Option<Instant>,
    images_per_second: f64,
}

/// Seconds as people write them: `3 s`, `4 min 05 s`, `2 h 03 min`.
#[must_use]
pub fn human_seconds(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

impl Console {
    /// A console that draws a bar if standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { bar: None, terminal, epoch: 0, last_plain: None, images_per_second: 0.0 }
    }

    /// Prints a line above the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            #[allow(clippy::print_stderr)]
            None => eprintln!("{text}"),
        }
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// A worker is ready for work.
    pub fn joined(&self, name: &str, device: &str, core: &Core) {
        let (step, _) = core.committed();
        let ready = core.members().ready().len();
        let wanted = core.spec().workers;
        let of = if step == 0 && ready <= wanted {
            format!("{ready} of {wanted}")
        } else {
            format!("now {ready}")
        };
        self.note(&format!("worker {name} is ready on {device} ({of})"));
    }

    /// A worker is gone.
    pub fn lost(&self, name: &str, reason: &str, core: &Core) {
        let ready = core.members().ready().len();
        self.note(&format!("worker {name} is gone: {reason} ({ready} left)"));
    }

    /// A step counts.
    pub fn step(&mut self, step: &Committed, core: &Core, seconds_left: f64) {
        let shape = core.spec();
        let per_epoch = shape.schedule.steps_per_epoch() as u64;
        let now = step.samples as f64 / step.seconds.max(1e-9);
        let new_epoch = self.epoch != step.epoch;
        let first = self.images_per_second == 0.0;
        self.images_per_second += if first { 1.0 } else { 0.1 } * (now - self.images_per_second);
        let index = (step.step - 1) % per_epoch + 1;
        let loss = step.loss;
        let left = human_seconds(seconds_left);
        // What matters most comes first: a narrow terminal cuts the line off at its end.
        let message = format!(
            "loss {:.3}  {:.0} images/s  {left} left  (digit {:.3}, sum {:.3}, difference {:.3})",
            loss.total(),
            self.images_per_second,
            loss.label,
            loss.sum,
            loss.difference
        );
        if self.terminal {
            if new_epoch {
                self.open_bar(step.epoch, shape.epochs, per_epoch);
            }
            if let Some(bar) = &self.bar {
                bar.set_position(index);
                bar.set_message(message);
                if index == per_epoch {
                    bar.abandon();
                    self.bar = None;
                }
            }
        } else if new_epoch
            || index == per_epoch
            || self.last_plain.is_none_or(|t| t.elapsed() >= PLAIN_EVERY)
        {
            self.last_plain = Some(Instant::now());
            let epochs = shape.epochs;
            self.note(&format!("epoch {}/{epochs}  step {index}/{per_epoch}  {message}", step.epoch));
        }
        self.epoch = step.epoch;
    }

    fn open_bar(&mut self, epoch: u32, epochs: u32, steps: u64) {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{prefix}  {bar:24.cyan/blue} {pos}/{len}  {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ "));
        bar.set_prefix(format!("epoch {epoch}/{epochs}"));
        self.bar = Some(bar);
    }

    /// A test pass begins.
    pub fn test_begins(&mut self, epoch: u32) {
        if self.terminal {
            let bar = ProgressBar::new_spinner().with_message(format!("epoch {epoch}: testing"));
            bar.enable_steady_tick(Duration::from_millis(120));
            self.bar = Some(bar);
        }
    }

    /// A test pass is done.
    pub fn tested(&mut self, epoch: u32, scores: &Scores, seconds: f64) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.note(&format!("epoch {epoch}  {}  ({})", test_line(scores), human_seconds(seconds)));
    }

    /// The run is over.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}
