//! Progress on standard error: a bar for each epoch, or plain lines where the output is no terminal; a line for each
//! test pass and each change in the cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tally_cli::output::{self, Level};
use tally_coordinator::observer::{Context, Observer, RunEvent};
use tally_core::Core;
use tally_core::cluster::Session;
use tally_core::events::{AuditResult, ClusterEvent, Committed};
use tally_numerics::schema::{Evaluation, Schema, Sums};

use crate::human_seconds::human_seconds;
use crate::view::replay::describe_reduction;

/// The time between two plain lines while training.
const PLAIN_EVERY: Duration = Duration::from_secs(10);
/// The time between two states of the bar; the terminal gets no more of them.
pub const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Cells of a bar.
const CELLS: u64 = 24;

/// Standard error, with a bar where it is a terminal. All lines go through [`output`], so that training never waits for
/// a reader.
#[derive(Debug)]
pub struct Console {
    terminal: bool,
    colours: bool,
    epoch: u32,
    last_progress: Option<Instant>,
    samples_per_second: f64,
}

/// A bar of which `done` of `all` is full.
#[must_use]
pub fn progress_bar(done: u64, all: u64, colours: bool) -> String {
    let halves = (2 * CELLS * done.min(all)).checked_div(all).unwrap_or(2 * CELLS);
    let (full, half) = ((halves / 2) as usize, (halves % 2) as usize);
    let (on, off) = if colours { ("\x1b[36m", "\x1b[0m") } else { ("", "") };
    let empty = CELLS as usize - full - half;
    format!("{on}{}{}{off}{}", "━".repeat(full), "╸".repeat(half), " ".repeat(empty))
}

impl Console {
    /// A console that draws a bar if standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none();
        let terminal = output::is_terminal();
        Self { terminal, colours, epoch: 0, last_progress: None, samples_per_second: 0.0 }
    }

    /// Prints a line above the bar.
    pub fn note(&self, text: &str) {
        output::note(Level::Info, text);
    }

    /// Prints a warning above the bar.
    pub fn warn(&self, text: &str) {
        output::note(Level::Warn, text);
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
    pub fn step(&mut self, step: &Committed, schema: &Schema, core: &Core, seconds_left: f64) {
        let shape = core.spec();
        let per_epoch = shape.schedule.steps_per_epoch() as u64;
        let now = step.samples as f64 / step.seconds.max(1e-9);
        let new_epoch = self.epoch != step.epoch;
        let first = self.samples_per_second == 0.0;
        self.samples_per_second += if first { 1.0 } else { 0.1 } * (now - self.samples_per_second);
        let index = (step.step - 1) % per_epoch + 1;
        let interval = if self.terminal { BAR_INTERVAL } else { PLAIN_EVERY };
        self.epoch = step.epoch;
        if !new_epoch && index != per_epoch && self.last_progress.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        self.last_progress = Some(Instant::now());
        let left = human_seconds(seconds_left);
        // The total loss comes first: a narrow terminal cuts the line off at its end.
        let message = format!(
            "loss {:.3}  {:.0} samples/s  {left} left{}",
            step.loss.total(),
            self.samples_per_second,
            loss_parts(schema, &step.loss)
        );
        let epoch = format!("epoch {}/{}", step.epoch, shape.epochs);
        if !self.terminal {
            return self.note(&format!("{epoch}  step {index}/{per_epoch}  {message}"));
        }
        let bar = progress_bar(index, per_epoch, self.colours);
        let line = format!("{epoch}  {bar} {index}/{per_epoch}  {message}");
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
    pub fn tested(&mut self, epoch: u32, result: &str, seconds: f64) {
        output::status(None);
        self.note(&format!("epoch {epoch}  {result}  ({})", human_seconds(seconds)));
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

/// The parts of a step's loss in parentheses; nothing where there is only one.
fn loss_parts(schema: &Schema, means: &Sums) -> String {
    if schema.losses().len() < 2 {
        return String::new();
    }
    let parts = schema.losses().iter().zip(&means.0);
    let parts: Vec<String> = parts.map(|(loss, mean)| format!("{} {mean:.3}", loss.label)).collect();
    format!("  ({})", parts.join(", "))
}

/// Shows a run on a console.
#[derive(Debug)]
pub struct ConsoleObserver {
    console: Console,
    schema: Schema,
    /// The workers that were late, and that a line has named.
    named_late: BTreeSet<Session>,
}

impl ConsoleObserver {
    /// Shows a run that measures this.
    #[must_use]
    pub fn new(console: Console, schema: Schema) -> Self {
        Self { console, schema, named_late: BTreeSet::new() }
    }

    fn cluster(&mut self, context: &Context<'_>, event: &ClusterEvent) {
        let core = context.core;
        match event {
            ClusterEvent::Ready { session } => {
                if let Some(member) = core.members().0.get(session) {
                    self.console.joined(&member.name, &member.device.name, core);
                }
            }
            ClusterEvent::Lost { session, name, reason, was_ready: true, .. } => {
                self.named_late.remove(session);
                self.console.lost(name, reason, core);
            }
            ClusterEvent::Adopted { session, step } => {
                let worker = context.worker_name(*session);
                self.console.note(&format!("going on from step {step}, which worker {worker} held"));
            }
            ClusterEvent::Late { session, step, leaves } => {
                let worker = context.worker_name(*session);
                let due = core.deadline().unwrap_or_default().as_secs_f64();
                let text = format!(
                    "worker {worker} is late at step {step}: its microbatches were due {due:.2} s after the step began; others \
                     compute these {leaves} too"
                );
                // A worker that is late again and again gets one line.
                if self.named_late.insert(*session) {
                    self.console.note(&text);
                } else {
                    tracing::info!("{text}");
                }
            }
            ClusterEvent::Audited { step, node, owner, checker, alone, result } => {
                if *result == AuditResult::Equal {
                    return;
                }
                let verdict = match (alone, node) {
                    (None, Some(_)) => "nobody could decide".to_string(),
                    (None, None) => {
                        "the step was computed again, and it is not known whose fault it was".into()
                    }
                    (Some(name), Some(_)) => format!("a third worker decided: {name} is sent away"),
                    (Some(name), None) => format!("the step was computed again: {name} is sent away"),
                };
                let what = node.map_or("sums".into(), |node| format!("node {}", node.0));
                self.console.warn(&format!(
                    "audit of step {step}: {owner} and {checker} got different bits for {what}; {verdict}"
                ));
            }
            ClusterEvent::Reduction { step, owners, reason } => {
                self.console.note(&describe_reduction(*step, *owners, reason));
            }
            ClusterEvent::Lost { .. } | ClusterEvent::TakenOver { .. } | ClusterEvent::TakenBack { .. } => {}
        }
    }

    fn tested(&mut self, epoch: u32, evaluation: &Evaluation, seconds: f64) {
        self.console.tested(epoch, &self.schema.summary(evaluation), seconds);
    }
}

impl Observer for ConsoleObserver {
    fn observe(&mut self, context: &Context<'_>, event: &RunEvent<'_>) {
        match *event {
            RunEvent::Cluster(event) => self.cluster(context, event),
            RunEvent::Committed { step, .. } => {
                self.console.step(step, &self.schema, context.core, context.seconds_left());
            }
            RunEvent::TestBegun { epoch } => self.console.test_begins(epoch),
            RunEvent::Tested { epoch, evaluation, seconds, .. } => self.tested(epoch, evaluation, seconds),
            RunEvent::Note(text) => self.console.note(text),
            RunEvent::Warning(text) => self.console.warn(text),
            RunEvent::Ended { .. } => self.console.end(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::schema;

    #[test]
    fn a_bar_is_as_wide_whatever_is_done_and_full_at_the_end() {
        for (done, all) in [(0, 100), (1, 100), (50, 100), (99, 100), (100, 100), (7, 5), (0, 0)] {
            assert_eq!(progress_bar(done, all, false).chars().count() as u64, CELLS, "{done} of {all}");
        }
        assert_eq!(progress_bar(1, 48, false).trim_end(), "╸");
        assert_eq!(progress_bar(2, 48, false).trim_end(), "━");
        assert_eq!(progress_bar(48, 48, false), "━".repeat(CELLS as usize));
    }

    #[test]
    fn the_parts_of_a_loss_are_named_by_their_labels() {
        assert_eq!(loss_parts(&schema(), &Sums(vec![0.25, 1.5])), "  (loss a 0.250, loss b 1.500)");
    }
}
