//! What a run shows to whoever looks: curves, workers, lanes, events, and where the seconds
//! went. The driver feeds it, the HTTP side reads it ([`feed`]).
//!
//! It is a model without sockets or clocks, and bounded: its size depends neither on the
//! number of steps nor on what has happened ([`series`], [`log`], [`lanes`], [`workers`]).

pub mod feed;
pub mod lanes;
pub mod log;
pub mod replay;
pub mod series;
pub mod spent;
pub mod state;
pub mod workers;

use std::collections::BTreeMap;

use crate::core::events::Committed;
use crate::core::members::Session;
use crate::run::journal::StepLine;
use lanes::{Lane, Lanes};
use log::{Entry, Kind, Log};
use series::{Series, Values};
use spent::{Part, Spent};
use state::{About, Moving, Progress, State, Test, Update, WaitedFor};
use workers::Workers;

/// Test passes that are remembered: an epoch each.
const MOST_TESTS: usize = 4096;
/// Names that are told as waited for.
const WAITED_FOR: usize = 8;
/// Names that are counted; then the least are forgotten.
const MOST_NAMES: usize = 1024;

/// How much of a view somebody has seen.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    series: series::Seen,
    tests: usize,
    log: u64,
    lanes: u64,
    workers: u64,
}

/// All that is shown of a run.
#[derive(Debug)]
pub struct View {
    about: About,
    progress: Progress,
    series: Series,
    tests: Vec<Test>,
    workers: Workers,
    lanes: Lanes,
    spent: Spent,
    waited_for: BTreeMap<String, f64>,
    log: Log,
}

impl View {
    /// A view of a run that has not begun.
    #[must_use]
    pub fn new(about: About) -> Self {
        Self {
            about,
            progress: Progress { phase: "waiting", ..Progress::default() },
            series: Series::default(),
            tests: Vec::new(),
            workers: Workers::default(),
            lanes: Lanes::default(),
            spent: Spent::default(),
            waited_for: BTreeMap::new(),
            log: Log::default(),
        }
    }

    /// A step that the journal tells of, from before this start.
    pub fn recorded(&mut self, step: &StepLine) {
        self.series.push(step.step, values(step));
        self.progress.step = step.step;
        self.progress.epoch = step.epoch;
        self.progress.loss = Some(step.loss);
    }

    /// A step counts, `now` seconds after the start; the update took the coordinator `updating` seconds,
    /// the seconds before the step belong to `before`. `slowest` is the name of who computed
    /// longest.
    pub fn step(
        &mut self,
        now: f64,
        step: &Committed,
        line: &StepLine,
        updating: f64,
        before: Part,
        slowest: Option<&str>,
    ) {
        self.spent.step(now, step, updating, before);
        if step.step <= self.progress.step {
            // It was computed before, and lost with its checkpoint.
            self.series.cut(step.step - 1);
        }
        self.series.push(step.step, values(line));
        let progress = &mut self.progress;
        progress.step = step.step;
        progress.epoch = step.epoch;
        progress.loss = Some(line.loss);
        progress.learning_rate = f64::from(line.learning_rate);
        progress.gradient_norm = line.gradient_norm;
        let Some(slowest) = slowest.filter(|_| step.waiting_seconds > 0.0) else { return };
        match self.waited_for.get_mut(slowest) {
            Some(seconds) => *seconds += step.waiting_seconds,
            None => {
                if self.waited_for.len() == MOST_NAMES {
                    let least = self.waited_for.iter().min_by(|a, b| a.1.total_cmp(b.1));
                    let least = least.map(|(name, _)| name.clone()).unwrap_or_default();
                    self.waited_for.remove(&least);
                }
                self.waited_for.insert(slowest.to_owned(), step.waiting_seconds);
            }
        }
    }

    /// A test pass is done.
    pub fn tested(&mut self, test: Test) {
        if self.tests.last().is_none_or(|last| last.step < test.step) && self.tests.len() < MOST_TESTS {
            self.tests.push(test);
        }
    }

    /// What changes a little.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// The table of workers.
    pub fn workers(&mut self) -> &mut Workers {
        &mut self.workers
    }

    /// Where the seconds go.
    pub fn spent(&mut self) -> &mut Spent {
        &mut self.spent
    }

    /// What a worker did in a step.
    pub fn lane(&mut self, session: Session, lane: Lane) {
        self.workers.lane(session, &lane);
        self.lanes.push(lane);
    }

    /// Something has happened.
    pub fn say(&mut self, unix: Option<f64>, step: u64, kind: Kind, worker: Option<String>, text: String) {
        self.log.push(Entry { id: 0, unix, step, kind, worker, text });
    }

    /// Where the seconds went.
    #[must_use]
    pub fn seconds(&self) -> spent::Seconds {
        self.spent.told()
    }

    /// Everything, and what to compare with next time.
    #[must_use]
    pub fn state(&self, now: f64) -> (State, Cursor) {
        let (series, seen) = self.series.all();
        let state = State {
            about: self.about.clone(),
            moving: self.moving(now),
            series,
            tests: self.tests.clone(),
            workers: self.workers.table(),
            lanes: self.lanes.since(0),
            log: self.log.since(0),
        };
        let cursor = Cursor {
            series: seen,
            tests: self.tests.len(),
            log: self.log.last(),
            lanes: self.lanes.count(),
            workers: self.workers.version(),
        };
        (state, cursor)
    }

    /// What is new since `cursor`, which moves on.
    #[must_use]
    pub fn update(&self, now: f64, cursor: &mut Cursor) -> Update {
        let (points, series) = match self.series.since(&mut cursor.series) {
            Some(Ok(points)) => (Some(points), None),
            Some(Err(series)) => (None, Some(series)),
            None => (None, None),
        };
        let changed = cursor.workers != self.workers.version();
        let update = Update {
            moving: self.moving(now),
            points,
            series,
            workers: changed.then(|| self.workers.table()),
            lanes: self.lanes.since(cursor.lanes),
            tests: self.tests.get(cursor.tests..).unwrap_or_default().to_vec(),
            log: self.log.since(cursor.log),
        };
        cursor.tests = self.tests.len();
        cursor.log = self.log.last();
        cursor.lanes = self.lanes.count();
        cursor.workers = self.workers.version();
        update
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.progress.outcome.is_some()
    }

    fn moving(&self, now: f64) -> Moving {
        let waited = self.waited_for.iter();
        let mut waited_for: Vec<WaitedFor> =
            waited.map(|(name, &seconds)| WaitedFor { name: name.clone(), seconds }).collect();
        waited_for.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        waited_for.truncate(WAITED_FOR);
        Moving {
            now,
            lanes_now: now,
            progress: self.progress.clone(),
            seconds: self.spent.told(),
            waited_for,
        }
    }
}

fn values(step: &StepLine) -> Values {
    Values {
        total: step.loss.total,
        label: step.loss.label,
        sum: step.loss.sum,
        difference: step.loss.difference,
        images_per_second: step.samples as f64 / step.seconds.max(1e-9),
        learning_rate: f64::from(step.learning_rate),
        gradient_norm: step.gradient_norm,
    }
}
