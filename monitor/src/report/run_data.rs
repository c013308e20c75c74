//! The data of a report, read from a run directory. The directory is only read: the run may go on in it meanwhile.

use std::path::Path;

use anyhow::Context as _;
use tally_numerics::schema::{Evaluation, LossSpec, MetricSpec, Schema};
use tally_run::journal::{Line, StepLine};
use tally_run::record::Record;

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It went to its end.
    Done,
    /// It was stopped, and can be resumed.
    Stopped,
    /// Its loss became NaN or infinite.
    Diverged,
    /// The journal has no end of it: it is going on, or its coordinator was killed.
    Unfinished,
}

impl State {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Diverged => "diverged",
            Self::Unfinished => "unfinished",
        }
    }
}

/// A test pass.
#[derive(Clone, Debug)]
pub struct TestPass {
    /// The step whose state was tested.
    pub step: u64,
    /// The epoch it ended.
    pub epoch: u32,
    /// Its result.
    pub evaluation: Evaluation,
}

impl TestPass {
    /// A metric that is one number, if the run measured it.
    #[must_use]
    pub fn ratio(&self, metric: &str) -> Option<f64> {
        self.evaluation.ratios().find(|(name, _)| *name == metric).map(|(_, value)| value)
    }
}

/// A worker's stay.
#[derive(Clone, Debug)]
pub struct Member {
    session: u64,
    /// Its name.
    pub name: String,
    /// Its device.
    pub device: String,
    /// The newest committed step when it was ready.
    pub joined: u64,
    /// The newest committed step when it left, and why; `None` if it is there.
    pub left: Option<(u64, String)>,
    /// It left by its own will.
    pub polite: bool,
    /// How often it was late.
    pub late: u32,
}

/// Counts of a run's events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Workers that became ready.
    pub joined: u64,
    /// Workers lost against their will.
    pub lost: u64,
    /// Microbatches that others took over from lost workers.
    pub taken_over: u64,
    /// Times a worker was past its deadline.
    pub late: u64,
    /// Attempts that were void.
    pub aborts: u64,
    /// Audits in which bits differed.
    pub audits: u64,
    /// Starts of the coordinator.
    pub starts: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
}

/// How the wall time divides, in seconds.
#[derive(Clone, Debug, Default)]
pub struct WallTime {
    /// A name and the seconds of each part; they add up to `total`.
    pub parts: Vec<(&'static str, f64)>,
    /// All of it.
    pub total: f64,
}

/// A run, as a report shows it.
#[derive(Debug)]
pub struct RunData {
    /// The directory's name, as it was given.
    pub name: String,
    /// The run directory's files.
    pub record: Record,
    /// Its state.
    pub state: State,
    /// When it was first started, in seconds since 1970.
    pub started: Option<u64>,
    /// Its test passes, by ascending step, each step once.
    pub tests: Vec<TestPass>,
    /// Its workers, in the order they came.
    pub members: Vec<Member>,
    /// Counts of its events.
    pub counts: Counts,
    /// How the wall time divides.
    pub time: WallTime,
}

/// How a run is called where a report has two.
#[must_use]
pub fn run_label(index: usize) -> &'static str {
    if index == 0 { "A" } else { "B" }
}

/// The losses of all runs, each once: `total`, then the parts if there are several.
#[must_use]
pub fn losses(runs: &[RunData]) -> Vec<LossSpec> {
    let total = LossSpec { name: "total".into(), label: "total".into() };
    let mut all = vec![total];
    for schema in runs.iter().map(RunData::schema).filter(|schema| schema.losses().len() > 1) {
        let new = |loss: &&LossSpec| all.iter().all(|known| known.name != loss.name);
        let new: Vec<LossSpec> = schema.losses().iter().filter(new).cloned().collect();
        all.extend(new);
    }
    all
}

/// The metrics of all runs that are one number, each once.
#[must_use]
pub fn ratios(runs: &[RunData]) -> Vec<&MetricSpec> {
    let mut all: Vec<&MetricSpec> = Vec::new();
    for (metric, _) in runs.iter().flat_map(|run| run.schema().ratios()) {
        if all.iter().all(|known| known.name != metric.name) {
            all.push(metric);
        }
    }
    all
}

/// A metric that is one number, in words: a share as per cent.
#[must_use]
pub fn ratio_text(ratio: f64) -> String {
    if (0.0..=1.0).contains(&ratio) { format!("{:.2}%", 100.0 * ratio) } else { format!("{ratio:.4}") }
}

impl RunData {
    /// Reads a run directory.
    ///
    /// # Errors
    /// If it is none, or holds what is no run's record.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let record = Record::read(path).with_context(|| format!("no report of {}", path.display()))?;
        let mut tests: Vec<TestPass> = Vec::new();
        let mut members: Vec<Member> = Vec::new();
        let (mut counts, mut started, mut state) = (Counts::default(), None, State::Unfinished);
        let mut tested = 0.0;
        for line in &record.others {
            match line {
                Line::Start { unix_seconds, .. } => {
                    counts.starts += 1;
                    started = started.or(Some(*unix_seconds));
                    state = State::Unfinished;
                    // The workers of the earlier start are gone, unless they join again.
                    for member in members.iter_mut().filter(|m| m.left.is_none()) {
                        member.polite = true;
                        member.left = Some((member.joined, "the coordinator started again".into()));
                    }
                }
                Line::Test { step, epoch, seconds, evaluation } => {
                    tested += seconds;
                    tests.retain(|test| test.step != *step);
                    tests.push(TestPass { step: *step, epoch: *epoch, evaluation: evaluation.clone() });
                }
                Line::Join { step, session, worker, device, .. } => {
                    counts.joined += 1;
                    members.push(Member {
                        session: *session,
                        name: worker.clone(),
                        device: device.clone(),
                        joined: *step,
                        left: None,
                        polite: false,
                        late: 0,
                    });
                }
                Line::Lost { step, session, reason, polite, .. } => {
                    counts.lost += u64::from(!polite);
                    if let Some(member) = of(&mut members, *session) {
                        member.left = Some((*step, reason.clone()));
                        member.polite = *polite;
                    }
                }
                Line::Straggler { session, .. } => {
                    counts.late += 1;
                    if let Some(member) = of(&mut members, *session) {
                        member.late += 1;
                    }
                }
                Line::Takeover { leaves, .. } => counts.taken_over += u64::from(*leaves),
                Line::Abort { .. } => counts.aborts += 1,
                Line::Audit { .. } => counts.audits += 1,
                Line::Checkpoint { .. } => counts.checkpoints += 1,
                Line::End { outcome, .. } => {
                    state = match outcome.as_str() {
                        "done" => State::Done,
                        "diverged" => State::Diverged,
                        _ => State::Stopped,
                    };
                }
                Line::Step(_)
                | Line::Adopt { .. }
                | Line::Reduction { .. }
                | Line::TakenBack { .. }
                | Line::Unknown => {}
            }
        }
        tests.sort_by_key(|test| test.step);
        let wall = record.summary.as_ref().filter(|_| state != State::Unfinished).map(|s| s.wall_seconds);
        let time = wall_time(&record, tested, wall);
        Ok(Self { name: path.display().to_string(), record, state, started, tests, members, counts, time })
    }

    /// The newest test pass.
    #[must_use]
    pub fn last_test(&self) -> Option<&TestPass> {
        self.tests.last()
    }

    /// The best test pass by the schema's measure, the first of equals: `checkpoints/best` has its state.
    #[must_use]
    pub fn best_test(&self) -> Option<&TestPass> {
        let score = |test: &TestPass| self.schema().score(&test.evaluation);
        self.tests.iter().fold(None, |best, test| match best {
            Some(best) if score(best) >= score(test) => Some(best),
            _ => Some(test),
        })
    }

    /// The losses and metrics that the run measures.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.record.config.schema
    }

    /// Steps that the run is to have.
    #[must_use]
    pub fn steps_wanted(&self) -> u64 {
        self.record.schedule.steps_per_epoch() as u64 * u64::from(self.record.config.epochs)
    }

    /// Training samples a second, over the time spent in steps.
    #[must_use]
    pub fn samples_per_second(&self) -> Option<f64> {
        let samples: usize = self.record.steps.iter().map(|step| step.samples).sum();
        let seconds: f64 = self.record.steps.iter().map(|step| step.seconds).sum();
        (seconds > 0.0).then(|| samples as f64 / seconds)
    }
}

/// The stay of a session.
fn of(members: &mut [Member], session: u64) -> Option<&mut Member> {
    members.iter_mut().rev().find(|member| member.session == session)
}

/// The steps' seconds by activity, the test passes', and the rest of the wall time.
fn wall_time(record: &Record, tested: f64, wall: Option<f64>) -> WallTime {
    let sum = |part: fn(&StepLine) -> f64| record.steps.iter().map(part).sum::<f64>();
    let steps = sum(|s| s.seconds);
    // The slowest worker's computing is what a step waits for. The mean worker computes for less
    // and waits for the rest of it.
    let waiting = sum(|s| s.waiting_seconds.clamp(0.0, s.compute_seconds));
    let computing = sum(|s| s.compute_seconds) - waiting;
    let transferring = sum(|s| s.transfer_seconds);
    let rest = (steps - computing - waiting - transferring).max(0.0);
    let total = wall.unwrap_or(0.0).max(computing + waiting + transferring + rest + tested);
    let other = total - (computing + waiting + transferring + rest + tested);
    let parts = vec![
        ("computing", computing),
        ("waiting for the slowest", waiting),
        ("transferring and summing", transferring),
        ("updating and committing", rest),
        ("testing", tested),
        ("between: starting, checkpoints, recovering", other),
    ];
    WallTime { parts, total }
}
