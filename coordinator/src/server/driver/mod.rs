//! The driver: one thread that feeds the core and performs its actions.
//!
//! It owns everything that a step changes: the core, the floats in flight, the master copy of the state, the journal.
//! It never waits for a worker; what is to be sent is queued. Every event goes to the observers.

mod actions;
mod inputs;
mod links;
mod reports;
mod sending;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tally_checkpoint::Meta;
use tally_cli::logging::in_one_line;
use tally_core::cluster::{DeviceInfo, LinkAbility, Session};
use tally_core::events::{Action, AuditResult, ClusterEvent, Committed, Event, RunOutcome};
use tally_core::reduce_mode::ReduceMode;
use tally_core::{Core, Phase};
use tally_numerics::digest::{self, Digest};
use tally_numerics::manifest::Manifest;
use tally_numerics::schema::{Evaluation, Sums};
use tally_numerics::state::State;
use tally_numerics::{CHUNK, TEST_MICROBATCH, chunk_range, norm};
use tally_proto::pool::{Chunk, Pool};
use tally_proto::span::{Clock, Span};
use tally_proto::v1::{self, CoordinatorMessage, GradientDown, coordinator_message, gradient_down};
use tally_proto::{LINKS, PROTOCOL, TIMELINE, capability_of, convert, floats, update};
use tally_run::config::RunConfig;
use tally_run::directory::RunDirectory;
use tally_run::journal::{History, JOURNAL_VERSION, Journal, JournalError, Line, StepLine};
use tally_run::stored_path::shell_quoted;
use tally_run::summary::{Summary, Times};
use tally_transport::link::LinkSecret;
use tally_transport::slow_link;
use tokio::sync::mpsc;

use super::checkpointer::Checkpointer;
use super::driver_heartbeat::Heartbeat;
use super::input::{ConnectionEnds, Hello, Input};
use super::master_state::MasterState;
use super::outbox::{Bulk, Control};
use super::reduction_buffers::{ReductionBuffers, Shared};
use super::rejoin_history::RejoinHistory;
use super::repeated_failures::RepeatedFailures;
use super::shared_sums::SharedSums;
use crate::dataset::{Dataset, microbatch};
use crate::observer::{Context, Idle, Observer, RunEvent};
use crate::timeline::WorkerTime;
use links::{LastSum, PeerAddress};

/// Workers that may be between their hello and their first work.
const MAX_PENDING_WORKERS: usize = 4096;

/// Bytes that may wait on a control stream: the samples of some steps, and thousands of
/// plans and commits.
const MAX_CONTROL_BYTES: usize = 64 << 20;

/// The reason for the loss of a worker whose queue is too long.
const LAGS_BEHIND: &str = "it lags too far behind";

/// The longest time between two ticks that observers are told of.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// A worker that has said hello but cannot take part yet.
#[derive(Debug)]
struct PendingWorker {
    hello: Hello,
    control: Control,
    bulk: Option<(Bulk, bool)>,
    device: Option<DeviceInfo>,
    peer: Option<PeerAddress>,
    secret: Option<LinkSecret>,
}

/// A worker that takes part.
#[derive(Debug)]
struct ConnectedWorker {
    control: Control,
    bulk: Bulk,
    /// It reads sums from shared memory.
    reads_shared_sums: bool,
    /// It has been sent a state, and gets what is broadcast.
    replica: bool,
    /// Its clock, if it tells of it.
    time: Option<WorkerTime>,
    /// Where other workers reach it, and how their tokens are made.
    peer: Option<(PeerAddress, LinkSecret)>,
}

/// A state on its way in from a worker, after a crash of the coordinator.
#[derive(Debug)]
struct Upload {
    session: Session,
    step: u64,
    state: State,
    /// Chunks that have not come: the vector's number, and the chunk's.
    missing: BTreeSet<(u32, u32)>,
}

/// What the driver is built from.
pub struct DriverDeps {
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
    /// The master copy of the state, at the core's committed step.
    pub master: MasterState,
    /// The training samples.
    pub train: Arc<dyn Dataset>,
    /// The test samples.
    pub test: Arc<dyn Dataset>,
    /// How often this run has been started.
    pub incarnation: u64,
    /// The clock by which all times are told.
    pub clock: Clock,
    /// The observers, in the order in which they get events.
    pub observers: Vec<Box<dyn Observer>>,
    /// Workers report spans of their time.
    pub spans: bool,
    /// Becomes true at the first step of this start.
    pub started: Arc<AtomicBool>,
    /// Beats with every input.
    pub heartbeat: Heartbeat,
}

/// The driver's state.
pub struct Driver {
    config: RunConfig,
    directory: RunDirectory,
    journal: Journal,
    history: History,
    core: Core,
    master: MasterState,
    train: Arc<dyn Dataset>,
    test: Arc<dyn Dataset>,
    /// The run's identity, its number of starts, and whether workers report spans.
    run: u64,
    incarnation: u64,
    spans: bool,
    /// Set at the first step.
    has_begun: Arc<AtomicBool>,
    clock: Clock,
    started: Instant,
    observers: RefCell<Vec<Box<dyn Observer>>>,
    last_tick: Instant,
    heartbeat: Heartbeat,

    pending: BTreeMap<Session, PendingWorker>,
    workers: BTreeMap<Session, ConnectedWorker>,
    /// Those whose queues are too long.
    lagging: BTreeSet<Session>,
    rejoins: RejoinHistory,
    failures: RepeatedFailures,
    /// What the core has not handled yet, with the chunk that has come with it.
    events: VecDeque<(Event, Option<Chunk>)>,
    buffers: ReductionBuffers,
    /// The chunks of the root whose digests the core asks for in this attempt.
    digested: Vec<u32>,
    /// The sum of the step that was closed last, for replicas that it did not reach.
    last_sum: LastSum,
    sums: SharedSums,
    /// For sums on their way out.
    pool: Pool,
    upload: Option<Upload>,
    gradient_norm: f64,
    /// The test microbatches that were evaluated.
    evaluated: BTreeMap<u32, Sums>,
    test_started: Duration,
    last_test: Option<Evaluation>,
    /// The best score and its step.
    best: Option<(f64, u64)>,
    last_step: Option<Committed>,
    /// Wall seconds a step, smoothed.
    step_seconds: f64,
    checkpointer: Checkpointer,
    totals: Totals,
    times: Times,
    /// The run was asked to stop.
    stopping: bool,
    /// The last checkpoint that could not be written, and why.
    unsaved: Option<(u64, String)>,
    outcome: Option<RunOutcome>,
}

/// What is counted for the summary.
#[derive(Debug, Default)]
struct Totals {
    joined: u64,
    lost: u64,
    trained_seconds: f64,
    trained_samples: u64,
}

/// The digest of a chunk's floats, as audits compare them.
fn chunk_digest(index: u32, values: &[f32]) -> Digest {
    digest::of(index as usize * CHUNK, values, &[values])
}

impl Driver {
    /// A driver about to start.
    #[must_use]
    pub fn new(deps: DriverDeps) -> Self {
        let DriverDeps { config, directory, journal, history, core, master, train, test, .. } = deps;
        let score = |(&step, evaluation): (&u64, &Evaluation)| (config.schema.score(evaluation), step);
        let best = history.tests.iter().map(score).fold(None, |best: Option<(f64, u64)>, next| {
            Some(best.filter(|b| b.0 >= next.0).unwrap_or(next))
        });
        let checkpointer =
            Checkpointer::start(directory.checkpoints(), config.keep_checkpoints, best.map(|(_, step)| step));
        Self {
            run: u64::from_str_radix(&config.run, 16).unwrap_or(0),
            incarnation: deps.incarnation,
            spans: deps.spans,
            has_begun: deps.started,
            clock: deps.clock,
            started: Instant::now(),
            observers: RefCell::new(deps.observers),
            last_tick: Instant::now(),
            heartbeat: deps.heartbeat,
            pending: BTreeMap::new(),
            workers: BTreeMap::new(),
            lagging: BTreeSet::new(),
            rejoins: RejoinHistory::default(),
            failures: RepeatedFailures::default(),
            events: VecDeque::new(),
            buffers: ReductionBuffers::new(config.wire_dtype, &config.tensors),
            digested: Vec::new(),
            last_sum: LastSum::default(),
            pool: Pool::default(),
            sums: SharedSums::new(core.spec().chunks),
            upload: None,
            gradient_norm: 0.0,
            evaluated: BTreeMap::new(),
            test_started: Duration::ZERO,
            last_test: history.tests.last_key_value().map(|(_, evaluation)| evaluation.clone()),
            best,
            last_step: None,
            step_seconds: 0.0,
            checkpointer,
            totals: Totals { joined: history.joined, lost: history.lost, ..Totals::default() },
            times: Times::default(),
            stopping: false,
            unsaved: None,
            outcome: None,
            config,
            directory,
            journal,
            history,
            core,
            master,
            train,
            test,
        }
    }

    /// Drives the run to its end and returns the result.
    ///
    /// # Errors
    /// If the journal can't be written, or a step that was recomputed has other bits than
    /// the journal recorded. What is on disk is intact then.
    pub fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> anyhow::Result<(RunOutcome, Summary)> {
        let driven = self.main_loop(&mut inputs);
        self.heartbeat.finished();
        let result = driven.and_then(|()| self.conclude());
        if let Err(error) = &result {
            self.after_checkpoints(true);
            self.observe(RunEvent::Failed(&in_one_line(error)));
            self.observe(RunEvent::Ended { outcome: "failed" });
            self.broadcast_finished(&format!("the coordinator stopped: {}", in_one_line(error)), true);
        }
        result
    }

    /// The last checkpoint, the journal's last line, the summary, and a message to the workers.
    fn conclude(&mut self) -> anyhow::Result<(RunOutcome, Summary)> {
        self.after_checkpoints(true);
        let outcome = self.outcome.clone().unwrap_or(RunOutcome::Stopped);
        let summary = self.summary(&outcome);
        let (step, word) = (summary.steps, summary.outcome.clone());
        self.record(&Line::End { step, outcome: word })?;
        self.journal.sync()?;
        self.directory.write_json("summary.json", &summary)?;
        self.observe(RunEvent::Ended { outcome: &summary.outcome });
        if let Some((_, error)) = self.unsaved.take_if(|(unsaved, _)| *unsaved == step) {
            bail!(
                "the state of step {step} could not be saved: {error}; make room and go on with --resume {}",
                shell_quoted(self.directory.given())
            );
        }
        let reason = match &outcome {
            RunOutcome::Done => "the run is done".to_string(),
            RunOutcome::Stopped => "the run was stopped".to_string(),
            RunOutcome::Diverged { step, .. } => format!("the run diverged at step {step}"),
        };
        self.broadcast_finished(&reason, outcome != RunOutcome::Done);
        Ok((outcome, summary))
    }

    fn main_loop(&mut self, inputs: &mut mpsc::Receiver<Input>) -> anyhow::Result<()> {
        let (step, _) = self.core.committed();
        self.observe(RunEvent::Started { incarnation: self.incarnation });
        self.record(&Line::Start {
            version: JOURNAL_VERSION,
            tally: env!("CARGO_PKG_VERSION").into(),
            incarnation: self.incarnation,
            step,
            unix_seconds: Clock::wall() as u64,
        })?;
        self.tick();
        if let Some((_, step)) = self.best {
            // It may have been found just before the last stop.
            self.checkpointer.best(step);
        }
        // A run that was done, but crashed before it wrote that, has nothing to wait for.
        self.push(Event::Wake);
        self.handle_events()?;
        while self.outcome.is_none() {
            let Some(input) = inputs.blocking_recv() else { break };
            self.heartbeat.beat();
            self.input(input);
            self.handle_events()?;
            self.after_checkpoints(false);
            if let Some(what) = self.failures.repeated() {
                return self.give_up(&what);
            }
            if self.last_tick.elapsed() >= TICK_EVERY {
                self.tick();
            }
        }
        Ok(())
    }

    /// Ends a run whose next step fails on every worker: more of them would only be lost as well.
    fn give_up(&mut self, what: &str) -> anyhow::Result<()> {
        let (step, _) = self.core.committed();
        if step > 0 {
            self.checkpoint(step)?;
        }
        bail!(
            "two workers failed in the same way after step {step}, whose state is kept: {what}; mend that, and go on with \
             --resume {}",
            shell_quoted(self.directory.given())
        )
    }

    fn tick(&mut self) {
        self.last_tick = Instant::now();
        self.observe(RunEvent::Tick);
    }

    /// An event for the core's next turn.
    fn push(&mut self, event: Event) {
        self.events.push_back((event, None));
    }

    fn handle_events(&mut self) -> anyhow::Result<()> {
        while let Some((event, mut chunk)) = self.events.pop_front() {
            for action in self.core.handle(self.started.elapsed(), event) {
                self.perform(action, &mut chunk)?;
            }
            self.disconnect_lagging();
        }
        Ok(())
    }

    /// The run as it is.
    fn context(&self) -> Context<'_> {
        Context {
            core: &self.core,
            clock: self.clock,
            seconds: self.started.elapsed().as_secs_f64(),
            stopping: self.stopping,
            idle: self.idle(),
            step_seconds: self.step_seconds,
        }
    }

    /// Tells all observers.
    fn observe(&self, event: RunEvent<'_>) {
        let context = self.context();
        for observer in self.observers.borrow_mut().iter_mut() {
            observer.observe(&context, &event);
        }
    }

    /// The activity between steps at this moment.
    fn idle(&self) -> Idle {
        match self.core.phase() {
            Phase::Recovering => Idle::Recovering,
            Phase::Testing => Idle::Testing,
            Phase::Training if self.core.members().any_ready() => Idle::Committing,
            Phase::Waiting | Phase::Training | Phase::Finished => Idle::Waiting,
        }
    }

    /// Passes a line to the observers, then writes it to the journal.
    ///
    /// # Errors
    /// If the journal can't be written.
    fn record(&mut self, line: &Line) -> Result<(), JournalError> {
        self.observe(RunEvent::Journal(line));
        self.journal.append(line)
    }
}
