//! The driver: one thread that feeds the core and performs its actions.
//!
//! It owns everything that a step changes: the core, the floats in flight, the referee's
//! copy, the journal. It never waits for a worker; what is to be sent is queued.

mod actions;
mod inputs;
mod sending;
mod showing;
mod timing;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tally_checkpoint::Meta;
use tally_data::Paired;
use tally_data::kept::quoted;
use tally_exact::digest::{self, Digest};
use tally_exact::manifest::Manifest;
use tally_exact::norm;
use tally_exact::update::Update;
use tally_exact::wire::WireDtype;
use tally_exact::{CHUNK, chunk_range};
use tally_proto::convert::LeafAnswers;
use tally_proto::v1::{self, CoordinatorMessage, GradientDown, coordinator_message, gradient_down};
use tally_proto::{BF16, PROTOCOL, TIMELINE, convert, floats};
use tokio::sync::mpsc;

use super::arena::{Arena, Shared};
use super::board::Board;
use super::outbox::{Bulk, Control};
use super::referee::Referee;
use super::service::{Hello, Input};
use crate::console::Console;
use crate::core::events::{Action, Committed, Device, Event, Finding, Note, Outcome};
use crate::core::members::{Member, Session};
use crate::core::{Core, Phase};
use crate::metrics::{self, workers::WorkerSeries};
use crate::run::checkpointer::Checkpointer;
use crate::run::config::RunConfig;
use crate::run::directory::RunDirectory;
use crate::run::journal::{History, JOURNAL_VERSION, Journal, JournalError, Line, StepLine};
use crate::run::summary::{Summary, TestSummary, Times};
use crate::timeline::trace::Trace;
use crate::timeline::{Lane, WorkerTime};
use crate::view::feed::Feed;
use crate::view::log::Kind;
use crate::view::spent::Part;
use tally_proto::pool::{Chunk, Pool};
use tally_worker::logging::in_one_line;
use tally_worker::scores::TEST_LEAF;
use tally_worker::scores::{self, Scores};

/// Workers that may be between their hello and their first work.
const MOST_GUESTS: usize = 4096;

/// Bytes that may wait on a control stream: the samples of some steps, and thousands of
/// plans and commits.
const MOST_CONTROL: usize = 64 << 20;

/// A worker that has said hello but cannot take part yet.
#[derive(Debug)]
struct Guest {
    hello: Hello,
    control: Control,
    bulk: Option<(Bulk, bool)>,
    device: Option<Device>,
}

/// A worker that takes part.
#[derive(Debug)]
struct Peer {
    control: Control,
    bulk: Bulk,
    /// It reads sums from the board.
    reads_board: bool,
    /// It has been sent a state, and gets what is broadcast.
    replica: bool,
    /// Its clock, if it tells of it.
    time: Option<WorkerTime>,
}

/// A state on its way in from a worker, after a crash of the coordinator.
#[derive(Debug)]
struct Upload {
    session: Session,
    step: u64,
    parameters: Vec<f32>,
    momentum: Vec<f32>,
    /// Chunks that have not come, of both.
    missing: BTreeSet<(bool, u32)>,
}

/// What the driver is built from.
pub struct Parts {
    /// The run's configuration.
    pub config: RunConfig,
    /// Its directory.
    pub directory: RunDirectory,
    /// Its journal.
    pub journal: Journal,
    /// What the journal says of the run so far.
    pub history: History,
    /// The decisions.
    pub core: Core,
    /// The referee's copy, at the core's committed step.
    pub referee: Referee,
    /// The training samples.
    pub train: Paired,
    /// The test samples.
    pub test: Paired,
    /// How often this run has been started.
    pub incarnation: u64,
    /// What the user sees.
    pub console: Console,
    /// What a page shows.
    pub feed: Feed,
    /// Workers are to tell what they do when.
    pub spans: bool,
    /// The metrics of each worker.
    pub series: WorkerSeries,
    /// Where all that is done is written to.
    pub trace: Option<Trace>,
    /// Becomes true at the first step of this start.
    pub started: Arc<AtomicBool>,
}

/// The driver's state.
pub struct Driver {
    parts: Parts,
    run: u64,
    started: Instant,
    guests: BTreeMap<Session, Guest>,
    peers: BTreeMap<Session, Peer>,
    /// Those whose queues are too long.
    lagging: BTreeSet<Session>,
    /// Those that were late, and of whom it was told.
    told_late: BTreeSet<Session>,
    events: VecDeque<Event>,
    arena: Arena,
    board: Board,
    /// For sums on their way out.
    pool: Pool,
    held: Option<Chunk>,
    upload: Option<Upload>,
    squared_norm: f64,
    answers: BTreeMap<u32, LeafAnswers>,
    test_started: Duration,
    last_test: Option<Scores>,
    best: Option<(f64, u64)>,
    last_step: Option<Committed>,
    /// Wall seconds a step, smoothed, for the time left.
    step_seconds: f64,
    checkpointer: Checkpointer,
    joined: u64,
    lost: u64,
    trained_seconds: f64,
    trained_samples: u64,
    times: Times,
    /// When the attempt in flight began, its sum was whole, and its update was applied.
    moments: timing::Moments,
    /// Seconds that the last update of the referee's copy took.
    updating: f64,
    /// What the time before the step in flight was spent on.
    resting: Part,
    /// When the table of workers was last shown.
    shown: Instant,
    /// The run was asked to stop.
    stopping: bool,
    /// The last checkpoint that could not be written, and why.
    unsaved: Option<(u64, String)>,
    outcome: Option<Outcome>,
}

impl Driver {
    /// A driver about to start.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let best = |(&step, scores): (&u64, &Scores)| (scores.all_correct, step);
        let best = parts.history.tests.iter().map(best).fold(None, |best: Option<(f64, u64)>, next| {
            Some(best.filter(|b| b.0 >= next.0).unwrap_or(next))
        });
        let checkpointer = Checkpointer::start(
            parts.directory.checkpoints(),
            parts.config.keep_checkpoints,
            best.map(|(_, step)| step),
        );
        Self {
            run: u64::from_str_radix(&parts.config.run, 16).unwrap_or(0),
            started: Instant::now(),
            guests: BTreeMap::new(),
            peers: BTreeMap::new(),
            lagging: BTreeSet::new(),
            told_late: BTreeSet::new(),
            events: VecDeque::new(),
            arena: Arena::new(parts.config.wire_dtype),
            pool: Pool::default(),
            board: Board::new(parts.core.shape().chunks),
            held: None,
            upload: None,
            squared_norm: 0.0,
            answers: BTreeMap::new(),
            test_started: Duration::ZERO,
            last_test: parts.history.tests.last_key_value().map(|(_, scores)| scores.clone()),
            best,
            last_step: None,
            step_seconds: 0.0,
            checkpointer,
            joined: parts.history.joined,
            lost: parts.history.lost,
            trained_seconds: 0.0,
            trained_samples: 0,
            times: Times::default(),
            moments: timing::Moments::default(),
            updating: 0.0,
            resting: Part::Idle,
            shown: Instant::now(),
            stopping: false,
            unsaved: None,
            outcome: None,
            parts,
        }
    }

    /// Drives the run to its end and returns what came out of it.
    ///
    /// # Errors
    /// If the journal can't be written, or a step that was recomputed has other bits than
    /// the journal recorded. What is on disk is intact then.
    pub fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> anyhow::Result<(Outcome, Summary)> {
        let result = self.main_loop(&mut inputs).and_then(|()| self.conclude());
        if let Err(error) = &result {
            self.after_checkpoints(true);
            self.show_warning(in_one_line(error));
            self.show_end("failed");
            self.farewell(&format!("the coordinator stopped: {}", in_one_line(error)), true);
        }
        self.parts.console.end();
        result
    }

    /// The last checkpoint, the journal's last line, the summary, and a word to the workers.
    fn conclude(&mut self) -> anyhow::Result<(Outcome, Summary)> {
        self.after_checkpoints(true);
        let outcome = self.outcome.clone().unwrap_or(Outcome::Stopped);
        let summary = self.summary(&outcome);
        let (step, word) = (summary.steps, summary.outcome.clone());
        self.record(&Line::End { step, outcome: word })?;
        self.parts.journal.sync()?;
        self.parts.directory.write_json("summary.json", &summary)?;
        self.show_end(&summary.outcome);
        if let Some((_, error)) = self.unsaved.take_if(|(unsaved, _)| *unsaved == step) {
            bail!(
                "the state of step {step} could not be saved: {error}; make room and go on with --resume {}",
                quoted(self.parts.directory.given())
            );
        }
        let reason = match &outcome {
            Outcome::Done => "the run is done".to_string(),
            Outcome::Stopped => "the run was stopped".to_string(),
            Outcome::Diverged { step, .. } => format!("the run diverged at step {step}"),
        };
        self.farewell(&reason, outcome != Outcome::Done);
        Ok((outcome, summary))
    }

    fn main_loop(&mut self, inputs: &mut mpsc::Receiver<Input>) -> anyhow::Result<()> {
        let (step, _) = self.parts.core.committed();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.record(&Line::Start {
            version: JOURNAL_VERSION,
            tally: env!("CARGO_PKG_VERSION").into(),
            incarnation: self.parts.incarnation,
            step,
            unix_seconds: now.map_or(0, |d| d.as_secs()),
        })?;
        metrics::start(&self.parts.config, self.parts.incarnation);
        metrics::workers(&self.parts.core);
        self.show_members();
        if let Some((_, step)) = self.best {
            // It may have been found just before the last stop.
            self.checkpointer.best(step);
        }
        // A run that was done before it could say so has nothing to wait for.
        self.events.push_back(Event::Wake);
        self.handle_events()?;
        while self.outcome.is_none() {
            let Some(input) = inputs.blocking_recv() else { break };
            self.input(input);
            self.handle_events()?;
            self.held = None;
            self.after_checkpoints(false);
            self.show_regularly();
        }
        Ok(())
    }

    fn handle_events(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.events.pop_front() {
            for action in self.parts.core.handle(self.started.elapsed(), event) {
                self.perform(action)?;
            }
            if self.parts.core.flight().is_none() {
                self.resting = self.resting();
            }
            self.drop_laggards();
        }
        Ok(())
    }
}
