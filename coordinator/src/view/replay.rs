//! The journal's lines as a page tells them, while they are written and when an earlier
//! start's are read.

use super::View;
use super::log::Kind;
use super::state::{CheckpointAt, Test};
use tally_run::journal::Line;

/// What kind of thing a line tells, of which worker, and in words; `None` for steps.
#[must_use]
pub fn told(line: &Line) -> Option<(Kind, Option<&str>, String)> {
    Some(match line {
        Line::Step(_) | Line::Unknown => return None,
        Line::Start { incarnation, .. } => {
            (Kind::Start, None, format!("the coordinator was started (start {incarnation} of this run)"))
        }
        Line::Test { epoch, scores, .. } => {
            (Kind::Test, None, format!("epoch {epoch}: {}", tally_worker::scores::test_line(scores)))
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
            format!("{leaves} micro-shards of step {step} are computed anew by {workers} other worker(s)"),
        ),
        Line::Hedge { step, worker, leaves, .. } => (
            Kind::Late,
            Some(worker),
            format!("{worker} is late at step {step}: others compute its {leaves} micro-shards too"),
        ),
        Line::Adopt { step, worker, .. } => {
            (Kind::Adopt, Some(worker), format!("going on from step {step}, which {worker} held"))
        }
        Line::Audit { step, node, owner, checker, .. } => (
            Kind::Audit,
            Some(owner),
            format!("{owner} and {checker} got different bits for node {node} of step {step}"),
        ),
        Line::Abort { step, reason, .. } => {
            (Kind::Abort, None, format!("step {step} begins again: {reason}"))
        }
        Line::Checkpoint { step, .. } => (Kind::Checkpoint, None, format!("checkpoint of step {step}")),
        Line::End { outcome, .. } => (Kind::End, None, format!("the run is over: {outcome}")),
    })
}

impl View {
    /// Takes the lines of a journal in their order. Only starts have a time of their own.
    pub fn replay(&mut self, lines: Vec<Line>) {
        for line in lines {
            let mut unix = None;
            let step = match &line {
                Line::Step(step) => {
                    self.recorded(step);
                    continue;
                }
                Line::Unknown => continue,
                Line::Start { step, unix_seconds, .. } => {
                    unix = Some(*unix_seconds as f64);
                    *step
                }
                Line::Test { step, epoch, scores, .. } => {
                    self.tested(Test { step: *step, epoch: *epoch, scores: scores.into() });
                    *step
                }
                Line::Checkpoint { step, .. } => {
                    self.progress().checkpoint = Some(CheckpointAt { step: *step, unix: None });
                    *step
                }
                Line::Join { step, .. }
                | Line::Lost { step, .. }
                | Line::Takeover { step, .. }
                | Line::Hedge { step, .. }
                | Line::Adopt { step, .. }
                | Line::Audit { step, .. }
                | Line::Abort { step, .. }
                | Line::End { step, .. } => *step,
            };
            self.tell(unix, step, &line);
        }
    }

    /// A line of the journal was written at `unix`, seconds since 1970, when `step` was the
    /// newest.
    pub fn tell(&mut self, unix: Option<f64>, step: u64, line: &Line) {
        if let Some((kind, worker, text)) = told(line) {
            self.say(unix, step, kind, worker.map(str::to_owned), text);
        }
    }
}
