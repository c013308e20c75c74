//! Keeps the view current as the run goes on.

use std::time::{Duration, Instant};

use tally_coordinator::observer::{Context, Idle, Observer, RunEvent};
use tally_core::events::{ClusterEvent, Committed};
use tally_proto::span::Clock;
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
        let unix = Clock::wall();
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
            ClusterEvent::TakenBack { .. } => view.time().disturbed(),
            ClusterEvent::Lost { .. }
            | ClusterEvent::Reduction { .. }
            | ClusterEvent::Adopted { .. }
            | ClusterEvent::Audited { .. } => {}
        });
    }

    fn warn(&self, context: &Context<'_>, text: &str) {
        let (step, unix) = (context.core.committed().0, Clock::wall());
        self.publisher.change(|view| view.log_event(Some(unix), step, Kind::Warning, None, text.to_owned()));
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
            RunEvent::Started { .. } => self.refresh(context),
            RunEvent::Journal(line) => {
                let (step, unix) = (context.core.committed().0, Clock::wall());
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
                self.idle = Activity::Committing;
            }
            RunEvent::CheckpointBegun => self.spend(context, Activity::Checkpointing),
            RunEvent::Checkpoint { step, result: Ok(_), .. } => {
                let newest = Some(CheckpointAt { step, unix: Some(Clock::wall()) });
                self.publisher.change(|view| view.progress().checkpoint = newest);
            }
            RunEvent::Lane(lane) => {
                let shown = lane.into();
                self.publisher.change(|view| view.push_lane(lane.session, shown));
            }
            RunEvent::Warning(text) | RunEvent::Failed(text) => self.warn(context, text),
            RunEvent::Tick if self.refreshed.elapsed() >= REFRESH_EVERY => self.refresh(context),
            RunEvent::Ended { outcome } => self.ended(context, outcome),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};
    use tally_run::journal::Line;

    use super::*;
    use crate::test_support::{committed, config, core, evaluation, step_line, tell};
    use crate::view::View;
    use crate::view::state::RunInfo;

    fn view() -> ViewPublisher {
        let info = RunInfo::of(&config(), Path::new("runs/run-0001"), 1, 4, 0.0).unwrap();
        ViewPublisher::new(View::new(info), Clock::start())
    }

    #[test]
    fn a_runs_seconds_belong_to_what_the_driver_said_it_did() {
        let (view, core) = (view(), core());
        let mut observer = ViewObserver::new(view.clone());
        let mut tell = |seconds, idle, event: RunEvent<'_>| tell(&mut observer, &core, seconds, idle, &event);
        let mut line = step_line(1, 2.0);
        (line.seconds, line.compute_seconds, line.transfer_seconds, line.waiting_seconds) =
            (2.0, 1.0, 0.25, 0.5);
        let step = committed(&line);
        let test = evaluation(6.0);

        tell(0.0, Idle::Waiting, RunEvent::Started { incarnation: 1 });
        tell(3.0, Idle::Waiting, RunEvent::AttemptBegun);
        tell(4.5, Idle::Committing, RunEvent::Updated { seconds: 0.125 });
        tell(5.0, Idle::Committing, RunEvent::Committed { step: &step, line: &line, recomputed: false });
        tell(6.0, Idle::Testing, RunEvent::TestBegun { epoch: 1 });
        tell(8.0, Idle::Testing, RunEvent::Tested { step: 1, epoch: 1, seconds: 2.0, evaluation: &test });
        tell(8.5, Idle::Committing, RunEvent::CheckpointBegun);
        let void = RunEvent::AttemptVoid { step: 2, attempt: 1, reason: "gone" };
        tell(10.0, Idle::Committing, void);
        tell(10.0, Idle::Committing, RunEvent::Failed("the disk is full"));
        tell(12.0, Idle::Recovering, RunEvent::Ended { outcome: "failed" });

        let state = serde_json::to_value(view.state()).unwrap();
        let seconds: Vec<(&str, f64)> = state["seconds"]["parts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| (part["name"].as_str().unwrap(), part["seconds"].as_f64().unwrap()))
            .collect();
        assert_eq!(
            seconds,
            [
                ("computing", 0.5),
                ("transferring", 0.25),
                ("waiting", 0.5),
                ("updating", 0.125),
                ("committing", 0.625 + 1.0),
                ("testing", 2.0),
                ("recovering", 1.5 + 2.0),
                ("checkpointing", 0.5),
                ("idle", 3.0),
            ]
        );
        assert_eq!((&state["phase"], &state["outcome"]), (&"finished".into(), &"failed".into()));
        assert_eq!(state["log"][0]["text"], "the disk is full");
    }

    #[test]
    fn what_a_page_gets_is_named_by_the_schema() {
        let (view, core) = (view(), core());
        let mut observer = ViewObserver::new(view.clone());
        let mut tell = |event: RunEvent<'_>| tell(&mut observer, &core, 1.0, Idle::Committing, &event);
        let (line, test) = (step_line(1, 2.0), evaluation(6.0));
        let (_, mut subscription) = view.subscribe();
        tell(RunEvent::Committed { step: &committed(&line), line: &line, recomputed: false });
        tell(RunEvent::Tested { step: 1, epoch: 1, seconds: 2.0, evaluation: &test });
        let tested = Line::Test { step: 1, epoch: 1, seconds: 2.0, evaluation: test.clone() };
        tell(RunEvent::Journal(&tested));

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let update = serde_json::to_value(runtime.block_on(subscription.next()).unwrap()).unwrap();
        assert_eq!(update["loss"], json!({ "total": 2.0, "a": 0.5, "b": 1.5 }));
        assert_eq!(update["samples_per_second"], 128.0);
        assert_eq!(update["points"]["loss/b"], json!([1.5]));
        assert_eq!(
            update["tests"],
            json!([{ "step": 1, "epoch": 1, "loss": 1.5, "metrics": { "right": 0.75 } }])
        );
        assert_eq!(update["log"][0]["text"], "epoch 1: loss 1.5000, all right 75.00%");
        assert_eq!(update["series"], Value::Null, "points are appended");
        let state = serde_json::to_value(view.state()).unwrap();
        assert_eq!(state["schema"]["metrics"][0]["label"], "all right");
        assert_eq!((&state["program"], &state["model"]), (&"a-program".into(), &"small".into()));
    }
}
