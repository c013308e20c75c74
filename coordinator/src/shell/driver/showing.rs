//! What the driver tells the view: each second's part, each step, and what happened.

use tally_proto::span::Clock;

use super::*;
use crate::view::state::{CheckpointAt, Test};
use crate::view::workers::state_of;

/// How often the table of workers is made anew, and time is accounted for between steps.
const SHOW_EVERY: Duration = Duration::from_secs(1);

impl Driver {
    /// What the run does, in a word.
    pub(super) fn phase(&self) -> &'static str {
        match self.parts.core.phase() {
            Phase::Finished => "finished",
            _ if self.stopping => "stopping",
            Phase::Waiting => "waiting",
            Phase::Recovering => "recovering",
            Phase::Training => "training",
            Phase::Testing => "testing",
        }
    }

    /// A member's state in a word.
    pub(super) fn state_of(&self, member: &Member) -> &'static str {
        state_of(member, &self.parts.core)
    }

    /// What time between steps is spent on, as things are.
    pub(super) fn resting(&self) -> Part {
        match self.parts.core.phase() {
            Phase::Recovering => Part::Recovering,
            Phase::Testing => Part::Testing,
            Phase::Training if !self.parts.core.members().ready().is_empty() => Part::Committing,
            Phase::Waiting | Phase::Training | Phase::Finished => Part::Idle,
        }
    }

    /// The time up to now was spent on this.
    pub(super) fn show_time(&self, part: Part) {
        let now = self.started.elapsed().as_secs_f64();
        self.parts.feed.change(|view| view.spent().until(now, part));
    }

    /// An attempt begins.
    pub(super) fn show_begin(&self) {
        self.show_time(self.resting);
    }

    /// An attempt was void; the step begins again.
    pub(super) fn show_abort(&mut self) {
        self.show_time(Part::Recovering);
        self.parts.feed.change(|view| view.spent().disturbed());
    }

    /// Once a second, and when the cluster has changed.
    pub(super) fn show_members(&mut self) {
        self.shown = Instant::now();
        let now = self.started.elapsed().as_secs_f64();
        let idle = self.parts.core.flight().is_none().then(|| self.resting());
        let (phase, core) = (self.phase(), &self.parts.core);
        let samples = core.samples_committed();
        let (step, _) = core.committed();
        let epoch = core.shape().schedule.position((step + 1).min(core.shape().steps())).0;
        self.parts.feed.change(|view| {
            if let Some(part) = idle {
                view.spent().until(now, part);
            }
            view.workers().refresh(core);
            let progress = view.progress();
            (progress.phase, progress.samples) = (phase, samples);
            (progress.step, progress.epoch) = (step, epoch);
        });
    }

    /// Between inputs.
    pub(super) fn show_regularly(&mut self) {
        if self.shown.elapsed() >= SHOW_EVERY {
            self.show_members();
        }
    }

    /// A step counts.
    pub(super) fn show_step(&mut self, step: &Committed, line: &StepLine) {
        let now = self.started.elapsed().as_secs_f64();
        let (updating, before) = (self.updating, self.resting);
        let slowest = step.slowest.map(|session| self.name_of(session));
        let (left, seconds) = (self.seconds_left(), self.step_seconds.max(1e-9));
        let (phase, samples) = (self.phase(), self.parts.core.samples_committed());
        self.parts.feed.change(|view| {
            view.step(now, step, line, updating, before, slowest.as_deref());
            let progress = view.progress();
            progress.phase = phase;
            progress.samples = samples;
            progress.images_per_second = step.samples as f64 / seconds;
            progress.seconds_left = Some(left);
        });
    }

    /// A test pass is done.
    pub(super) fn show_test(&mut self, step: u64, epoch: u32, scores: &Scores) {
        self.show_time(Part::Testing);
        let test = Test { step, epoch, scores: scores.into() };
        self.parts.feed.change(|view| view.tested(test));
    }

    /// A checkpoint is on disk.
    pub(super) fn show_checkpoint(&mut self, step: u64) {
        let unix = Some(Clock::wall());
        self.parts.feed.change(|view| view.progress().checkpoint = Some(CheckpointAt { step, unix }));
    }

    /// A line for the journal, which is shown as well.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub(super) fn record(&mut self, line: &Line) -> Result<(), JournalError> {
        let (step, unix) = (self.parts.core.committed().0, Clock::wall());
        self.parts.feed.change(|view| view.tell(Some(unix), step, line));
        self.parts.journal.append(line)
    }

    /// A warning that is no line of the journal.
    pub(super) fn show_warning(&self, text: String) {
        let (step, unix) = (self.parts.core.committed().0, Clock::wall());
        self.parts.feed.change(|view| view.say(Some(unix), step, Kind::Warning, None, text));
    }

    /// The cluster has changed: what the table of workers keeps of it.
    pub(super) fn show_note(&mut self, note: &Note) {
        // First all of it, in which a newcomer is to be found.
        self.show_members();
        let unix = Clock::wall();
        self.parts.feed.change(|view| match note {
            Note::Ready { session } => view.workers().joined(*session, unix),
            Note::Lost { session, name, reason, met: true, .. } => {
                view.workers().lost(*session, name, reason, unix);
            }
            Note::Late { session, .. } => view.workers().late(*session),
            Note::TakenOver { by, .. } => {
                view.spent().disturbed();
                by.iter().for_each(|&(session, leaves)| view.workers().takes_over(session, leaves.into()));
            }
            Note::Lost { .. } | Note::Adopted { .. } | Note::Audited { .. } => {}
        });
    }

    /// The run is over.
    pub(super) fn show_end(&mut self, outcome: &str) {
        self.show_members();
        self.parts.feed.change(|view| {
            let progress = view.progress();
            progress.phase = "finished";
            progress.seconds_left = None;
            progress.outcome = Some(outcome.into());
        });
    }
}
