//! What the person who started the run sees: a bar an epoch, or plain lines where the
//! output is no terminal; a line for each test pass and each change in the cluster.

use std::time::{Duration, Instant};

use tally_cli::output::{self, Level};

use crate::core::Core;
use crate::core::events::Committed;
use tally_worker::scores::{Scores, test_line};

/// How often a plain line is printed while training.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How often the bar is made anew; it is drawn no oftener.
pub const BAR_EVERY: Duration = Duration::from_millis(100);
/// Cells of a bar.
const CELLS: u64 = 24;

/// Where progress goes: standard error, by way of [`output`], so that training never waits for it.
pub struct Console {
    terminal: bool,
    colours: bool,
    epoch: u32,
    told: Option<Instant>,
    images_per_second: f64,
}

/// A bar of which `done` of `all` is full.
#[must_use]
pub fn bar(done: u64, all: u64, colours: bool) -> String {
    let halves = (2 * CELLS * done.min(all)).checked_div(all).unwrap_or(2 * CELLS);
    let (full, half) = ((halves / 2) as usize, (halves % 2) as usize);
    let (on, off) = if colours { ("\x1b[36m", "\x1b[0m") } else { ("", "") };
    let empty = CELLS as usize - full - half;
    format!("{on}{}{}{off}{}", "━".repeat(full), "╸".repeat(half), " ".repeat(empty))
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
        let colours = std::env::var_os("NO_COLOR").is_none();
        Self { terminal: output::is_terminal(), colours, epoch: 0, told: None, images_per_second: 0.0 }
    }

    /// A line above the bar.
    pub fn note(&self, text: &str) {
        output::note(Level::Info, text);
    }

    /// A warning above the bar.
    pub fn warn(&self, text: &str) {
        output::note(Level::Warn, text);
    }

    /// A worker is ready for work.
    pub fn joined(&self, name: &str, device: &str, core: &Core) {
        let (step, _) = core.committed();
        let ready = core.members().ready().len();
        let wanted = core.shape().workers;
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
        let shape = core.shape();
        let per_epoch = shape.schedule.steps_per_epoch() as u64;
        let now = step.samples as f64 / step.seconds.max(1e-9);
        let new_epoch = self.epoch != step.epoch;
        let first = self.images_per_second == 0.0;
        self.images_per_second += if first { 1.0 } else { 0.1 } * (now - self.images_per_second);
        let index = (step.step - 1) % per_epoch + 1;
        let every = if self.terminal { BAR_EVERY } else { PLAIN_EVERY };
        self.epoch = step.epoch;
        if !new_epoch && index != per_epoch && self.told.is_some_and(|told| told.elapsed() < every) {
            return;
        }
        self.told = Some(Instant::now());
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
        let epoch = format!("epoch {}/{}", step.epoch, shape.epochs);
        if !self.terminal {
            return self.note(&format!("{epoch}  step {index}/{per_epoch}  {message}"));
        }
        let line = format!("{epoch}  {} {index}/{per_epoch}  {message}", bar(index, per_epoch, self.colours));
        if index == per_epoch {
            output::status(None);
            self.note(&line);
        } else {
            output::status(Some(line));
        }
    }

    /// A test pass begins.
    pub fn test_begins(&mut self, epoch: u32) {
        if self.terminal {
            output::status(Some(format!("epoch {epoch}: testing")));
        }
    }

    /// A test pass is done.
    pub fn tested(&mut self, epoch: u32, scores: &Scores, seconds: f64) {
        output::status(None);
        self.note(&format!("epoch {epoch}  {}  ({})", test_line(scores), human_seconds(seconds)));
    }

    /// The run is over.
    pub fn end(&mut self) {
        output::status(None);
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_wide_whatever_is_done_and_full_at_the_end() {
        for (done, all) in [(0, 100), (1, 100), (50, 100), (99, 100), (100, 100), (7, 5), (0, 0)] {
            assert_eq!(bar(done, all, false).chars().count() as u64, CELLS, "{done} of {all}");
        }
        assert_eq!(bar(1, 48, false).trim_end(), "╸");
        assert_eq!(bar(2, 48, false).trim_end(), "━");
        assert_eq!(bar(48, 48, false), "━".repeat(CELLS as usize));
    }
}
