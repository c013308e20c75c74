//! The journal's lines as events of the page: while they are written, and when those of an earlier start are read.

use tally_numerics::schema::Schema;
use tally_run::journal::Line;

use super::View;
use super::log::Kind;
use super::state::{CheckpointAt, Test};

/// From which step on the gradients are added up by other processes than before, and why.
#[must_use]
pub fn describe_reduction(step: u64, owners: usize, reason: &str) -> String {
    let who = if owners == 0 { "the coordinator adds".into() } else { format!("{owners} workers add") };
    format!("from step {step} on {who} gradients up: {reason}")
}

/// A line's kind, the worker that it concerns, and the event in words; `None` for steps.
#[must_use]
pub fn describe_line<'a>(line: &'a Line, schema: &Schema) -> Option<(Kind, Option<&'a str>, String)> {
    Some(match line {
        Line::Step(_) | Line::Unknown => return None,
        Line::Start { incarnation, .. } => {
            (Kind::Start, None, format!("the coordinator was started (start {incarnation} of this run)"))
        }
        Line::Test { epoch, evaluation, .. } => {
            (Kind::Test, None, format!("epoch {epoch}: {}", schema.summary(evaluation)))
        }
        Line::Join { worker, device, .. } => {
            (Kind::Join, Some(worker), format!("{worker} is ready on {device}"))
        }
        Line::Lost { worker, reason, polite, .. } => {
            let how = if *polite { "has left" } else { "is lost" };
            (Kind::Lost, Some(worker), format!("{worker} {how}: {reason}"))
        }
        Line::Takeover { step, leaves, workers } => (
            Kind::Takeover,
            None,
            format!("{leaves} microbatches of step {step} are computed anew by {workers} other worker(s)"),
        ),
        Line::Straggler { step, worker, leaves, .. } => (
            Kind::Late,
            Some(worker),
            format!("{worker} is late at step {step}: others compute its {leaves} microbatches too"),
        ),
        Line::Reduction { step, owners, reason } => {
            (Kind::Reduction, None, describe_reduction(*step, *owners, reason))
        }
        Line::TakenBack { step, chunks, reason } => (
            Kind::Reduction,
            None,
            format!(
                "the coordinator adds up {chunks} chunks of step {step} that workers had to add up: {reason}"
            ),
        ),
        Line::Adopt { step, worker, .. } => {
            (Kind::Adopt, Some(worker), format!("going on from step {step}, which {worker} held"))
        }
        Line::Audit { step, node, owner, checker, .. } => {
            let what = node.map_or("sums".into(), |node| format!("node {node}"));
            let text = format!("{owner} and {checker} got different bits for {what} of step {step}");
            (Kind::Audit, Some(owner), text)
        }
        Line::Abort { step, reason, .. } => {
            (Kind::Abort, None, format!("step {step} begins again: {reason}"))
        }
        Line::Checkpoint { step, .. } => (Kind::Checkpoint, None, format!("checkpoint of step {step}")),
        Line::End { outcome, .. } => (Kind::End, None, format!("the run is over: {outcome}")),
    })
}

impl View {
    /// Applies the lines of earlier starts, in their order. Only starts have a time of their own.
    pub fn replay(&mut self, lines: &[Line]) {
        for line in lines {
            let mut unix = None;
            let step = match line {
                Line::Step(step) => {
                    self.recorded(step);
                    continue;
                }
                Line::Unknown => continue,
                Line::Start { step, unix_seconds, .. } => {
                    unix = Some(*unix_seconds as f64);
                    *step
                }
                Line::Test { step, epoch, evaluation, .. } => {
                    self.tested(Test::of(*step, *epoch, evaluation));
                    *step
                }
                Line::Checkpoint { step, .. } => {
                    self.progress().checkpoint = Some(CheckpointAt { step: *step, unix: None });
                    *step
                }
                Line::Join { step, .. }
                | Line::Lost { step, .. }
                | Line::Takeover { step, .. }
                | Line::Straggler { step, .. }
                | Line::Adopt { step, .. }
                | Line::Audit { step, .. }
                | Line::Reduction { step, .. }
                | Line::TakenBack { step, .. }
                | Line::Abort { step, .. }
                | Line::End { step, .. } => *step,
            };
            self.apply_line(unix, step, line);
        }
    }

    /// Appends the event of a line that was written at `unix`, in seconds since 1970, when `step` was the newest.
    pub fn apply_line(&mut self, unix: Option<f64>, step: u64, line: &Line) {
        if let Some((kind, worker, text)) = describe_line(line, self.schema()) {
            self.log_event(unix, step, kind, worker.map(str::to_owned), text);
        }
    }
}
