//! Keeps the view current as the run goes on.

use std::time::{Duration, Instant};

use tally_coordinator::observer::{Context, Idle, Observer, RunEvent};
use tally_core::events::{ClusterEvent, Committed};
use tally_run::journal::StepLine;

use super::log::Kind;
use super::publisher::ViewPublisher;
use super::state::{CheckpointAt, Test};
use super::time_breakdown::Activity;

/// How often the table of workers is made anew, and time is accounted for between steps.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

impl From<Idle> for Activity {
    fn from(idle: Idle) -> Self {
        match idle {
            Idle::Recovering => Self::Recovering,
            Idle::Testing => Self::Testing,
            Idle::Committing => Self::Committing,
            Idle::Waiting => Self::Idle,
        }
    }
}

/// The observer behind the page.
#[derive(Debug)]
pub struct ViewObserver {
    publisher: ViewPublisher,
    /// When the table of workers was last made.
    refreshed: Instant,
    /// What the time before the step in flight was spent on.
    idle: Activity,
    /// Seconds that the coordinator's last update took.
    updating: f64,
}

impl ViewObserver {
    /// An observer that changes this view.
    #[must_use]
    pub fn new(publisher: ViewPublisher) -> Self {
        Self { publisher, refreshed: Instant::now(), idle: Activity::Idle, updating: 0.0 }
    }

    /// The time up to now was spent on this.
    fn spend(&self, context: &Context<'_>, activity: Activity) {
        self.publisher.change(|view| view.time().until(context.seconds, activity));
    }

    /// Makes the table of workers anew: once a second, and when the cluster has changed.
    fn refresh(&mut self, context: &Context<'_>) {
        self.refreshed = Instant::now();
        let core = context.core;
        let between_steps = core.flight().is_none();
        self.publisher.change(|view| {
            if between_steps {
                view.time().until(context.seconds, context.idle.into());
            }
            view.workers().refresh(core);
            let progress = view.progress();
            progress.phase = context.phase();
            progress.samples = core.samples_committed();
            progress.step = core.committed().0;
            progress.epoch = context.epoch();
        });
    }

    fn committed(&self, context: &Context<'_>, step: &Committed, line: &StepLine) {
        let slowest = step.slowest.map(|session| context.worker_name(session));
        self.publisher.change(|view| {
            view.step(context.seconds, step, line, self.updating, self.idle, slowest.as_deref());
            let progress = view.progress();
            progress.phase = context.phase();
            progress.samples = context.core.samples_committed();
            progress.samples_per_second = step.samples as f64 / context.step_seconds.max(1e-9);
            progress.seconds_left = Some(context.seconds_left());
        });
    }

    /// The cluster has changed: what the table of workers keeps of it.
    fn cluster(&mut self, context: &Context<'_>, event: &ClusterEvent) {
        // The whole table first, so that a newcomer is in it.
        self.refresh(context);
        let unix = context.clock.unix();
        self.publisher.change(|view| match event {
            ClusterEvent::Ready { session } => view.workers().joined(*session, unix),
            ClusterEvent::Lost { session, name, reason, was_ready: true, .. } => {
                view.workers().lost(*session, name, reason, unix);
            }
            ClusterEvent::Late { session, .. } => view.workers().late(*session),
            ClusterEvent::TakenOver { by, .. } => {
                view.time().disturbed();
                by.iter().for_each(|&(session, count)| view.workers().takes_over(session, count.into()));
            }
            ClusterEvent::Lost { .. } | ClusterEvent::Adopted { .. } | ClusterEvent::Audited { .. } => {}
        });
    }

    fn warn(&self, context: &Context<'_>, text: String) {
        let (step, unix) = (context.core.committed().0, context.clock.unix());
        self.publisher.change(|view| view.log_event(Some(unix), step, Kind::Warning, None, text));
    }

    fn ended(&mut self, context: &Context<'_>, outcome: &str) {
        self.refresh(context);
        self.publisher.change(|view| {
            let progress = view.progress();
            progress.phase = "finished";
            progress.seconds_left = None;
            progress.outcome = Some(outcome.into());
        });
    }
}

impl Observer for ViewObserver {
    fn observe(&mut self, context: &Context<'_>, event: &RunEvent<'_>) {
        if context.core.flight().is_none() {
            self.idle = context.idle.into();
        }
        match *event {
            RunEvent::Started => self.refresh(context),
            RunEvent::Journal(line) => {
                let (step, unix) = (context.core.committed().0, context.clock.unix());
                self.publisher.change(|view| view.apply_line(Some(unix), step, line));
            }
            RunEvent::Cluster(event) => self.cluster(context, event),
            RunEvent::AttemptBegun => self.spend(context, self.idle),
            RunEvent::Updated { seconds } => self.updating = seconds,
            RunEvent::AttemptVoid { .. } => {
                self.spend(context, Activity::Recovering);
                self.publisher.change(|view| view.time().disturbed());
            }
            RunEvent::Committed { step, line, .. } => self.committed(context, step, line),
            RunEvent::TestBegun { .. } => self.spend(context, Activity::Committing),
            RunEvent::Tested { step, epoch, evaluation, .. } => {
                self.spend(context, Activity::Testing);
                self.publisher.change(|view| view.tested(Test::of(step, epoch, evaluation)));
            }
            RunEvent::CheckpointBegun => self.spend(context, Activity::Checkpointing),
            RunEvent::Checkpoint { step, result, .. } => match result {
                Ok(_) => {
                    let unix = Some(context.clock.unix());
                    let newest = Some(CheckpointAt { step, unix });
                    self.publisher.change(|view| view.progress().checkpoint = newest);
                }
                Err(error) => self.warn(context, crate::no_checkpoint(step, error)),
            },
            RunEvent::Lane(lane) => {
                let shown = lane.into();
                self.publisher.change(|view| view.push_lane(lane.session, shown));
            }
            RunEvent::Warning(text) | RunEvent::Failed(text) => self.warn(context, text.to_owned()),
            RunEvent::Tick if self.refreshed.elapsed() >= REFRESH_EVERY => self.refresh(context),
            RunEvent::Ended { outcome } => self.ended(context, outcome),
            _ => {}
        }
    }
}
