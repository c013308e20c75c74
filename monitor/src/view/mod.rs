//! The model behind the page: curves, workers, lanes, events, and where the seconds went. [`observer`] keeps it
//! current, the HTTP side reads it through [`publisher`].
//!
//! The model has no sockets and no clock. It is bounded: its size depends neither on the number of steps nor on the
//! number of events ([`series`], [`log`], [`lanes`], [`workers`]).

pub mod lanes;
pub mod log;
pub mod observer;
pub mod publisher;
pub mod replay;
pub mod series;
pub mod state;
pub mod time_breakdown;
pub mod workers;

use std::collections::BTreeMap;

use tally_core::cluster::Session;
use tally_core::events::Committed;
use tally_numerics::schema::Schema;
use tally_run::journal::StepLine;

use lanes::{Lane, Lanes};
use log::{Entry, Kind, Log};
use series::Series;
use state::{LiveState, Progress, RunInfo, State, Test, Update, WaitedFor};
use time_breakdown::{Activity, Seconds, TimeBreakdown};
use workers::Workers;

/// Test passes that are remembered: an epoch each.
const MOST_TESTS: usize = 4096;
/// Workers in the list of those that were waited for.
const WAITED_FOR: usize = 8;
/// Names that are counted; of more, the least are forgotten.
const MOST_NAMES: usize = 1024;

/// How much of a view a reader has seen.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    series: series::Seen,
    tests: usize,
    log: u64,
    lanes: u64,
    workers: u64,
}

/// Everything that a page shows of a run.
#[derive(Debug)]
pub struct View {
    info: RunInfo,
    progress: Progress,
    series: Series,
    tests: Vec<Test>,
    workers: Workers,
    lanes: Lanes,
    time: TimeBreakdown,
    waited_for: BTreeMap<String, f64>,
    log: Log,
}

impl View {
    /// A view of a run that has not begun.
    #[must_use]
    pub fn new(info: RunInfo) -> Self {
        Self {
            series: Series::new(&info.schema),
            info,
            progress: Progress { phase: "waiting", ..Progress::default() },
            tests: Vec::new(),
            workers: Workers::default(),
            lanes: Lanes::default(),
            time: TimeBreakdown::default(),
            waited_for: BTreeMap::new(),
            log: Log::default(),
        }
    }

    /// The losses and metrics that the run measures.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.info.schema
    }

    /// A step of an earlier start, as the journal has it.
    pub fn recorded(&mut self, step: &StepLine) {
        self.series.push(step);
        self.progress.step = step.step;
        self.progress.epoch = step.epoch;
        self.progress.loss = Some(step.loss.clone());
    }

    /// A step counts, `now` seconds after the start; the update took the coordinator `updating` seconds,
    /// the seconds before the step belong to `before`. `slowest` is the name of the worker that computed longest.
    pub fn step(
        &mut self,
        now: f64,
        step: &Committed,
        line: &StepLine,
        updating: f64,
        before: Activity,
        slowest: Option<&str>,
    ) {
        self.time.step(now, step, updating, before);
        self.series.push(line);
        let progress = &mut self.progress;
        progress.step = step.step;
        progress.epoch = step.epoch;
        progress.loss = Some(line.loss.clone());
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

    /// The state that changes in small ways with every step.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// The table of workers.
    pub fn workers(&mut self) -> &mut Workers {
        &mut self.workers
    }

    /// Where the seconds go.
    pub fn time(&mut self) -> &mut TimeBreakdown {
        &mut self.time
    }

    /// The spans of a worker in a step.
    pub fn push_lane(&mut self, session: Session, lane: Lane) {
        self.workers.lane(session, &lane);
        self.lanes.push(lane);
    }

    /// Appends an event.
    pub fn log_event(
        &mut self,
        unix: Option<f64>,
        step: u64,
        kind: Kind,
        worker: Option<String>,
        text: String,
    ) {
        self.log.push(Entry { id: 0, unix, step, kind, worker, text });
    }

    /// Where the seconds went.
    #[must_use]
    pub fn seconds(&self) -> Seconds {
        self.time.snapshot()
    }

    /// Everything, and the cursor of a reader that has seen it.
    #[must_use]
    pub fn state(&self, now: f64) -> (State, Cursor) {
        let (series, seen) = self.series.all();
        let state = State {
            info: self.info.clone(),
            live: self.live(now),
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
            live: self.live(now),
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

    fn live(&self, now: f64) -> LiveState {
        let waited = self.waited_for.iter();
        let mut waited_for: Vec<WaitedFor> =
            waited.map(|(name, &seconds)| WaitedFor { name: name.clone(), seconds }).collect();
        waited_for.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        waited_for.truncate(WAITED_FOR);
        LiveState {
            now,
            lanes_now: now,
            progress: self.progress.clone(),
            seconds: self.time.snapshot(),
            waited_for,
        }
    }
}
