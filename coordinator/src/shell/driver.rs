//! The driver: one thread that feeds the core and performs its actions.
//!
//! It owns everything that a step changes: the core, the floats in flight, the referee's
//! copy, the journal. It never waits for a worker; what is to be sent is queued.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tally_checkpoint::Meta;
use tally_data::Paired;
use tally_exact::digest::{self, Digest};
use tally_exact::manifest::Manifest;
use tally_exact::norm;
use tally_exact::update::Update;
use tally_exact::{CHUNK, chunk_range};
use tally_proto::convert::LeafAnswers;
use tally_proto::v1::{self, CoordinatorMessage, GradientDown, coordinator_message, gradient_down};
use tally_proto::{PROTOCOL, convert, floats};
use tokio::sync::mpsc;

use super::arena::Arena;
use super::outbox::{Bulk, Control};
use super::referee::Referee;
use super::service::{Hello, Input};
use crate::console::Console;
use crate::core::audit::Finding;
use crate::core::events::{Action, Committed, Event, Note, Outcome};
use crate::core::members::{Session, State};
use crate::core::{Core, Phase};
use crate::metrics;
use crate::run::checkpointer::Checkpointer;
use crate::run::config::RunConfig;
use crate::run::directory::RunDirectory;
use crate::run::journal::{History, Journal, Line, StepLine};
use crate::run::summary::{Summary, TestSummary, Times};
use tally_proto::pool::Chunk;
use tally_worker::scores::TEST_LEAF;
use tally_worker::scores::{self, Scores};

/// Workers that may be between their hello and their first work.
const MOST_GUESTS: usize = 4096;

/// A worker that has said hello but cannot take part yet.
#[derive(Debug)]
struct Guest {
    hello: Hello,
    control: Control,
    bulk: Option<Bulk>,
    device: Option<String>,
}

/// A worker that takes part.
#[derive(Debug)]
struct Peer {
    control: Control,
    bulk: Bulk,
    /// It has been sent a state, and gets what is broadcast.
    replica: bool,
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
    events: VecDeque<Event>,
    arena: Arena,
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
            events: VecDeque::new(),
            arena: Arena::default(),
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
            self.farewell(&format!("the coordinator stopped: {error:#}"), true);
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
        self.parts.journal.append(&Line::End { step, outcome: word })?;
        self.parts.journal.sync()?;
        self.parts.directory.write_json("summary.json", &summary)?;
        if let Some((_, error)) = self.unsaved.take_if(|(unsaved, _)| *unsaved == step) {
            bail!(
                "the state of step {step} could not be saved: {error}; make room and go on with --resume {}",
                self.parts.directory.path().display()
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
        self.parts.journal.append(&Line::Start {
            incarnation: self.parts.incarnation,
            step,
            unix_seconds: now.map_or(0, |d| d.as_secs()),
        })?;
        metrics::start(&self.parts.config, self.parts.incarnation);
        metrics::workers(&self.parts.core);
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
        }
        Ok(())
    }

    fn handle_events(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.events.pop_front() {
            for action in self.parts.core.handle(self.started.elapsed(), event) {
                self.perform(action)?;
            }
        }
        Ok(())
    }

    // ---- Inputs ----

    fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if let Event::Lost { session, reason, polite } = &event {
                    self.guests.remove(session);
                    if !polite {
                        self.send_away(*session, reason);
                    }
                }
                if let Event::Committed { session, apply, round, .. } = &event
                    && self.peers.contains_key(session)
                {
                    self.times.worker(*apply, *round);
                    metrics::worker_times(*apply, *round);
                }
                self.events.push_back(event);
            }
            Input::Chunk { from, node, index, data } => {
                let (data, fault) = match data {
                    Ok(data) => (Some(data), None),
                    Err(fault) => (None, Some(fault)),
                };
                let audited = data.as_ref().filter(|_| self.parts.core.is_audited(from, node));
                let digest = audited.map(|values| digest::of(index as usize * CHUNK, values, values));
                self.held = data;
                self.events.push_back(Event::Chunk { from, node, index, digest, fault });
            }
            Input::State { session, step, momentum, index, data } => {
                self.state_chunk(session, step, momentum, index, data);
            }
            Input::Answers { session, step, answers } => {
                let leaf = answers.leaf;
                let member = self.parts.core.members().0.get(&session);
                if step < self.parts.core.committed().0 || self.parts.core.phase() != Phase::Testing {
                    // Others have answered it in the meantime.
                    return;
                }
                if step != self.parts.core.committed().0 || member.is_none_or(|m| !m.testing.contains(&leaf))
                {
                    return self.lose(
                        session,
                        format!("it answered leaf {leaf} of the test pass, which it was not given"),
                    );
                }
                let wanted = self.parts.test.len().saturating_sub(leaf as usize * TEST_LEAF).min(TEST_LEAF);
                match LeafAnswers::from_message(&answers, wanted) {
                    Ok(answers) => {
                        self.answers.entry(leaf).or_insert(answers);
                        self.events.push_back(Event::Answered { session, step, leaf });
                    }
                    Err(error) => self.lose(session, format!("its answers are wrong: {error}")),
                }
            }
            Input::Hello { session, hello, control } => {
                let config = &self.parts.config;
                let welcome = v1::Welcome {
                    protocol: PROTOCOL,
                    build: env!("CARGO_PKG_VERSION").into(),
                    model: config.model.to_string(),
                    label_loss: config.label_loss.to_string(),
                    shards: config.shards,
                    spare: self.peers.len() >= config.shards as usize,
                };
                self.control(&control, session, 0, 0, coordinator_message::Body::Welcome(welcome));
                self.guests.insert(session, Guest { hello, control, bulk: None, device: None });
                if self.guests.len() > MOST_GUESTS {
                    self.refuse(session, "too many workers are joining; try again later".into());
                }
            }
            Input::Offer { session, manifest, device } => self.offer(session, manifest, device),
            Input::Attach { session, bulk, known } => {
                let guest = self.guests.get_mut(&session).filter(|guest| guest.bulk.is_none());
                let _ = known.send(guest.is_some());
                if let Some(guest) = guest {
                    guest.bulk = Some(bulk);
                    self.let_in(session);
                }
            }
            Input::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Input::Stop => {
                self.parts
                    .console
                    .note("stopping after the step in flight (interrupt again to stop at once)");
                self.events.push_back(Event::Stop);
            }
        }
    }

    /// Tells a worker why its session is over; one whose connection broke does not hear it.
    fn send_away(&self, session: Session, reason: &str) {
        let evicted = v1::Evicted { reason: reason.into() };
        self.tell(session, 0, 0, coordinator_message::Body::Evicted(evicted));
    }

    fn lose(&mut self, session: Session, reason: String) {
        self.send_away(session, &reason);
        self.events.push_back(Event::Lost { session, reason, polite: false });
    }

    fn offer(&mut self, session: Session, manifest: Result<Manifest, String>, device: String) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        let problem = match manifest {
            Ok(manifest) if manifest == self.parts.config.tensors => None,
            Ok(_) => Some(format!(
                "its network {} has other tensors than this run's; run the same build of Tally on both sides",
                self.parts.config.model
            )),
            Err(error) => Some(format!("its manifest is wrong: {error}")),
        };
        if let Some(reason) = problem {
            return self.refuse(session, reason);
        }
        guest.device = Some(device);
        self.let_in(session);
    }

    fn refuse(&mut self, session: Session, reason: String) {
        if let Some(guest) = self.guests.remove(&session) {
            tracing::warn!(worker = guest.hello.name, "refused: {reason}");
            let refused = coordinator_message::Body::Refused(v1::Refused { reason });
            self.control(&guest.control, session, 0, 0, refused);
        }
    }

    /// A guest with a manifest and a gradient stream takes part from now on.
    fn let_in(&mut self, session: Session) {
        let complete = self.guests.get(&session).is_some_and(|g| g.bulk.is_some() && g.device.is_some());
        if !complete {
            return;
        }
        let Some(Guest { hello, control, bulk: Some(bulk), device: Some(device) }) =
            self.guests.remove(&session)
        else {
            return;
        };
        self.peers.insert(session, Peer { control, bulk, replica: false });
        let Hello { name, threads, held } = hello;
        self.events.push_back(Event::Joined { session, name, device, threads, held });
    }

    // ---- Sending ----

    fn stamp(&self, session: Session, step: u64, attempt: u32) -> Option<v1::Stamp> {
        Some(v1::Stamp { run: self.run, incarnation: self.parts.incarnation, session, step, attempt })
    }

    fn control(
        &self,
        to: &Control,
        session: Session,
        step: u64,
        attempt: u32,
        body: coordinator_message::Body,
    ) {
        let stamp = self.stamp(session, step, attempt);
        // A worker that is gone takes nothing; its end is told by its stream.
        let _ = to.send(Ok(CoordinatorMessage { stamp, body: Some(body) }));
    }

    fn tell(&self, session: Session, step: u64, attempt: u32, body: coordinator_message::Body) {
        if let Some(peer) = self.peers.get(&session) {
            self.control(&peer.control, session, step, attempt, body);
        }
    }

    /// Queues a message for every replica. One whose queue holds more than a few models
    /// lags too far and is dropped; it can join again.
    fn broadcast(&mut self, step: u64, attempt: u32, body: &gradient_down::Body) {
        let limit = 16 * self.parts.config.tensors.len() + (64 << 20);
        let mut sent = 0;
        let mut lagging = Vec::new();
        for (&session, peer) in self.peers.iter().filter(|(_, peer)| peer.replica) {
            let stamp = self.stamp(session, step, attempt);
            if peer.bulk.send(GradientDown { stamp, body: Some(body.clone()) }) > limit {
                lagging.push(session);
            }
            sent += 1;
        }
        if let gradient_down::Body::Reduced(reduced) = body {
            metrics::sent(reduced.data.len() * sent);
        }
        for session in lagging {
            self.lose(session, "it lags too far behind".into());
        }
    }

    fn tell_replicas(&self, step: u64, attempt: u32, body: &coordinator_message::Body) {
        for (&session, peer) in self.peers.iter().filter(|(_, peer)| peer.replica) {
            self.control(&peer.control, session, step, attempt, body.clone());
        }
    }

    fn send_state(&mut self, session: Session) {
        let (step, digest) = self.parts.core.committed();
        let stamp = self.stamp(session, step, 0);
        let Some(peer) = self.peers.get_mut(&session) else { return };
        peer.replica = true;
        let send = |body| {
            peer.bulk.send(GradientDown { stamp, body: Some(body) });
        };
        let elements = self.parts.config.tensors.len() as u64;
        send(gradient_down::Body::State(v1::State { elements, digest: digest.0 }));
        let snapshot = self.parts.referee.snapshot();
        for momentum in [false, true] {
            for (index, chunk) in snapshot.chunks(momentum).enumerate() {
                let data = floats::share(chunk);
                let chunk = v1::StateChunk { momentum, index: index as u32, data };
                send(gradient_down::Body::StateChunk(chunk));
            }
        }
    }

    /// Sends a newcomer what was broadcast of the step in flight.
    fn catch_up(&self, session: Session, during: Option<(u64, u32)>) {
        let (Some((step, attempt)), Some(peer)) = (during, self.peers.get(&session)) else { return };
        let stamp = self.stamp(session, step, attempt);
        let send = |body| peer.bulk.send(GradientDown { stamp, body: Some(body) });
        let rate = self.parts.core.shape().recipe.rate(step, self.parts.core.shape().steps());
        send(gradient_down::Body::Begin(self.begin(rate)));
        for (index, chunk) in self.arena.emitted() {
            send(gradient_down::Body::Reduced(v1::Reduced { index, data: floats::share(chunk) }));
        }
    }

    fn begin(&self, learning_rate: f32) -> v1::Begin {
        let recipe = &self.parts.config.optimizer;
        v1::Begin { learning_rate, momentum: recipe.momentum, unclipped: recipe.clip_norm.is_none() }
    }

    /// A chunk of a state that a worker was asked for (**RESUME-1**).
    fn state_chunk(
        &mut self,
        session: Session,
        step: u64,
        momentum: bool,
        index: u32,
        data: Result<Chunk, String>,
    ) {
        let asked = |u: &&mut Upload| {
            (u.session, u.step) == (session, step) && u.missing.contains(&(momentum, index))
        };
        let Some(upload) = self.upload.as_mut().filter(asked) else {
            return self.lose(session, "it sent a state that it was not asked for".into());
        };
        upload.missing.remove(&(momentum, index));
        let values = match data {
            Ok(values) => values,
            Err(fault) => return self.lose(session, format!("the state that it sent is wrong: {fault}")),
        };
        let into = if momentum { &mut upload.momentum } else { &mut upload.parameters };
        let range = chunk_range(into.len(), index as usize);
        into[range].copy_from_slice(&values);
        if upload.missing.is_empty() {
            let digest = digest::of(0, &upload.parameters, &upload.momentum);
            self.events.push_back(Event::Uploaded { session, step, digest });
        }
    }

    fn farewell(&mut self, reason: &str, stopped: bool) {
        let body = coordinator_message::Body::Finished(v1::Finished { reason: reason.into(), stopped });
        let guests = self.guests.iter().map(|(session, guest)| (*session, &guest.control));
        let peers = self.peers.iter().map(|(session, peer)| (*session, &peer.control));
        for (session, control) in guests.chain(peers) {
            self.control(control, session, 0, 0, body.clone());
        }
        self.guests.clear();
        self.peers.clear();
    }

    // ---- Actions ----

    fn perform(&mut self, action: Action) -> anyhow::Result<()> {
        use coordinator_message::Body as Tell;
        match action {
            Action::SendState { session, during } => {
                self.send_state(session);
                self.catch_up(session, during);
            }
            Action::Keep { session, during } => {
                let (step, digest) = self.parts.core.committed();
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.replica = true;
                }
                self.tell(session, step, 0, Tell::Keep(v1::Keep { digest: digest.0 }));
                self.catch_up(session, during);
            }
            Action::Upload { session, step } => {
                let elements = self.parts.config.tensors.len();
                let chunks = self.parts.core.shape().chunks;
                self.upload = Some(Upload {
                    session,
                    step,
                    parameters: vec![0.0; elements],
                    momentum: vec![0.0; elements],
                    missing: [false, true]
                        .into_iter()
                        .flat_map(|m| (0..chunks).map(move |i| (m, i)))
                        .collect(),
                });
                self.tell(session, step, 0, Tell::Upload(v1::Upload {}));
            }
            Action::Adopt { step } => {
                if let Some(upload) = self.upload.take() {
                    self.parts.referee = Referee::new(&upload.parameters, &upload.momentum);
                }
                let tests = self.parts.history.tests.range(..=step);
                self.last_test = tests.last().map(|(_, scores)| scores.clone());
            }
            Action::SendLeaf { session, step, leaf, ids } => {
                let samples = self.parts.train.samples(&ids)?;
                self.tell(session, step, 0, Tell::Leaf(convert::leaf(leaf, false, &samples)));
            }
            Action::SendTestLeaf { session, step, leaf } => {
                let first = leaf as usize * TEST_LEAF;
                let last = (first + TEST_LEAF).min(self.parts.test.len());
                let ids: Vec<u32> = (first as u32..last as u32).collect();
                let samples = self.parts.test.samples(&ids)?;
                self.tell(session, step, 0, Tell::Leaf(convert::leaf(leaf, true, &samples)));
            }
            Action::Begin { step, attempt, learning_rate } => {
                self.parts.started.store(true, Ordering::Relaxed);
                self.arena.reset(self.parts.core.shape().chunks as usize);
                let begin = gradient_down::Body::Begin(self.begin(learning_rate));
                self.broadcast(step, attempt, &begin);
            }
            Action::Plan { session, step, attempt, samples, nodes } => {
                let digest = self.parts.core.committed().1.0;
                let nodes = nodes.iter().map(|n| n.0).collect();
                self.tell(
                    session,
                    step,
                    attempt,
                    Tell::Plan(v1::Plan { samples: samples as u32, nodes, digest, audit: false }),
                );
            }
            Action::Audit { session, step, attempt, samples, node } => {
                let (digest, nodes) = (self.parts.core.committed().1.0, vec![node.0]);
                let plan = v1::Plan { samples: samples as u32, nodes, digest, audit: true };
                self.tell(session, step, attempt, Tell::Plan(plan));
            }
            Action::Take { node, index } => {
                if let Some(values) = self.held.take() {
                    metrics::received(4 * values.len());
                    self.arena.put(node, index, values);
                }
            }
            Action::Reduce(due) => {
                if let Some((index, chunk)) = self.arena.perform(due)
                    && let Some(flight) = self.parts.core.flight()
                {
                    let (step, attempt) = (flight.step, flight.attempt);
                    let reduced = v1::Reduced { index, data: floats::share(chunk) };
                    self.broadcast(step, attempt, &gradient_down::Body::Reduced(reduced));
                }
            }
            Action::Close { step, attempt, learning_rate } => {
                metrics::deadline(self.parts.core.deadline());
                self.close(step, attempt, learning_rate);
            }
            Action::Commit(committed) => self.commit(*committed)?,
            Action::Abort { step, attempt, reason } => {
                tracing::warn!(step, attempt, "an attempt at the step is void: {reason}");
                metrics::aborted();
                self.parts.journal.append(&Line::Abort { step, attempt, reason: reason.clone() })?;
                self.arena.reset(0);
                self.tell_replicas(step, attempt, &Tell::Abort(v1::Abort { reason }));
            }
            Action::Evict { session, reason, drifted } => {
                metrics::evicted(drifted);
                self.send_away(session, &reason);
            }
            Action::Checkpoint { step } => self.checkpoint(step)?,
            Action::TestBegin { epoch, .. } => {
                self.answers.clear();
                self.test_started = self.started.elapsed();
                self.parts.console.test_begins(epoch);
            }
            Action::TestDone { step, epoch } => self.tested(step, epoch)?,
            Action::Note(note) => self.note(note)?,
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    fn close(&mut self, step: u64, attempt: u32, learning_rate: f32) {
        let recipe = self.parts.config.optimizer;
        self.squared_norm = self.arena.squared_norm();
        if !self.squared_norm.is_finite() {
            return self.events.push_back(Event::Diverged);
        }
        let clip = norm::clip_factor(self.squared_norm, recipe.clip_norm);
        self.broadcast(step, attempt, &gradient_down::Body::Close(v1::Close { clip }));
        let update = Update { learning_rate, momentum: recipe.momentum, clip };
        let digest = self.parts.referee.apply(update, self.arena.root());
        self.arena.reset(0);
        self.events.push_back(Event::Applied { digest });
    }

    fn commit(&mut self, committed: Committed) -> anyhow::Result<()> {
        let step = committed.step;
        match self.parts.history.digests.get(&step) {
            // Computed before, and lost with its checkpoint: it must have come out the same.
            Some(recorded) if *recorded != committed.digest => bail!(
                "step {step} was recomputed and has digest {} where the journal has {recorded}: this machine does \
                 not compute the bits of the one that ran before; resume on workers of the same kind",
                committed.digest
            ),
            Some(_) => metrics::recomputed(),
            None => self.parts.journal.append(&Line::Step(self.step_line(&committed)))?,
        }
        let body = coordinator_message::Body::Commit(v1::Commit { digest: committed.digest.0 });
        self.tell_replicas(step, committed.attempt, &body);
        let smooth = if self.step_seconds == 0.0 { 1.0 } else { 0.1 };
        self.step_seconds += smooth * (committed.seconds - self.step_seconds);
        self.trained_seconds += committed.seconds;
        self.trained_samples += committed.samples as u64;
        self.times.step(&committed);
        metrics::step(&committed, &self.parts.core);
        let left = self.seconds_left();
        self.parts.console.step(&committed, &self.parts.core, left);
        self.last_step = Some(committed);
        Ok(())
    }

    fn step_line(&self, c: &Committed) -> StepLine {
        StepLine {
            step: c.step,
            epoch: c.epoch,
            loss: c.loss.into(),
            samples: c.samples,
            workers: c.workers,
            seconds: c.seconds,
            compute_seconds: c.compute_seconds,
            transfer_seconds: c.transfer_seconds,
            waiting_seconds: c.waiting_seconds,
            attempt: c.attempt,
            learning_rate: c.learning_rate,
            gradient_norm: self.squared_norm.sqrt(),
            digest: c.digest,
        }
    }

    fn checkpoint(&mut self, step: u64) -> anyhow::Result<()> {
        // The journal is made to last first, so that it never ends before its checkpoints.
        self.parts.journal.sync()?;
        let snapshot = self.parts.referee.snapshot();
        let config = &self.parts.config;
        let meta = Meta {
            version: tally_checkpoint::VERSION,
            run: config.run.clone(),
            model: config.model.to_string(),
            label_loss: config.label_loss.to_string(),
            step,
            epoch: self.parts.core.shape().schedule.position(step.max(1)).0,
            digest: self.parts.core.committed().1,
            // Computed by the thread that writes.
            parameters_sha256: String::new(),
            tensors: config.tensors.clone(),
            config: serde_json::to_value(config).context("cannot describe the run")?,
        };
        self.checkpointer.write(meta, snapshot);
        Ok(())
    }

    /// Tells of checkpoints that were written since; at the end, waits for the last.
    fn after_checkpoints(&mut self, last: bool) {
        let done = if last { self.checkpointer.finish() } else { self.checkpointer.poll() };
        for done in done {
            match done.result {
                Ok(path) => {
                    metrics::checkpoint(true, done.step);
                    let path = path.display().to_string();
                    tracing::info!(step = done.step, path, "checkpoint");
                    if let Err(error) = self.parts.journal.append(&Line::Checkpoint { step: done.step, path })
                    {
                        tracing::warn!("{error}");
                    }
                }
                Err(error) => {
                    // Training goes on: the older checkpoints are intact, and so is the run.
                    metrics::checkpoint(false, done.step);
                    self.parts.console.warn(&format!("no checkpoint at step {}: {error}", done.step));
                    self.unsaved = Some((done.step, error));
                }
            }
        }
    }

    fn tested(&mut self, step: u64, epoch: u32) -> anyhow::Result<()> {
        let scores = scores::score(&self.parts.test, &self.answers);
        self.answers.clear();
        let seconds = (self.started.elapsed() - self.test_started).as_secs_f64();
        metrics::test(&scores, seconds);
        self.parts.console.tested(epoch, &scores, seconds);
        if self.best.is_none_or(|(best, _)| scores.all_correct > best) {
            self.best = Some((scores.all_correct, step));
            self.checkpointer.best(step);
        }
        if !self.parts.history.tests.contains_key(&step) {
            self.parts.journal.append(&Line::Test { step, epoch, seconds, scores: scores.clone() })?;
        }
        self.last_test = Some(scores);
        Ok(())
    }

    fn note(&mut self, note: Note) -> anyhow::Result<()> {
        let step = self.parts.core.committed().0;
        match note {
            Note::Ready { session } => {
                self.joined += 1;
                if let Some(member) = self.parts.core.members().0.get(&session) {
                    let (worker, device) = (member.name.clone(), member.device.clone());
                    self.parts.console.joined(&worker, &device, &self.parts.core);
                    self.parts.journal.append(&Line::Join { step, session, worker, device })?;
                }
                metrics::joined();
            }
            Note::Lost { session, met: false, .. } => drop(self.peers.remove(&session)),
            Note::Lost { session, name, reason, polite, .. } => {
                self.peers.remove(&session);
                self.lost += u64::from(!polite);
                metrics::lost(polite);
                self.parts.console.lost(&name, &reason, &self.parts.core);
                self.parts.journal.append(&Line::Lost { step, session, worker: name, reason, polite })?;
            }
            Note::Adopted { session, step } => {
                let worker = self.name_of(session);
                self.parts.console.note(&format!("going on from step {step}, which worker {worker} held"));
                self.parts.journal.append(&Line::Adopt { step, session, worker })?;
            }
            Note::Late { session, step, leaves } => {
                let worker = self.name_of(session);
                let due = self.parts.core.deadline().unwrap_or_default().as_secs_f64();
                metrics::late(leaves);
                tracing::info!(
                    step,
                    worker,
                    leaves,
                    "late: due {due:.3} s after the step began; others compute its share too"
                );
                self.parts.journal.append(&Line::Hedge { step, session, worker, leaves })?;
            }
            Note::Audited { step, node, owner, checker, alone, finding } => {
                let line = Line::Audit { step, node: node.0, owner, checker, alone };
                self.audited(line, finding == Finding::Equal)?;
            }
            Note::TakenOver { step, leaves, workers } => {
                metrics::taken_over(leaves);
                tracing::info!(step, leaves, workers, "a worker's micro-shards are computed by others");
                self.parts.journal.append(&Line::Takeover { step, leaves, workers })?;
            }
        }
        metrics::workers(&self.parts.core);
        Ok(())
    }

    fn name_of(&self, session: Session) -> String {
        self.parts.core.members().0.get(&session).map_or_else(|| format!("{session:x}"), |m| m.name.clone())
    }

    fn audited(&mut self, line: Line, equal: bool) -> anyhow::Result<()> {
        metrics::audited(equal);
        let Line::Audit { step, node, owner, checker, alone } = &line else { return Ok(()) };
        if equal {
            return Ok(());
        }
        let verdict = alone.as_ref().map_or_else(
            || "nobody could decide".to_string(),
            |name| format!("a third worker decided: {name} is sent away"),
        );
        self.parts.console.warn(&format!(
            "audit of step {step}: workers {owner} and {checker} got different bits for node {node}; {verdict}"
        ));
        Ok(self.parts.journal.append(&line)?)
    }

    // ---- Views ----

    fn seconds_left(&self) -> f64 {
        let (step, _) = self.parts.core.committed();
        (self.parts.core.shape().steps().saturating_sub(step)) as f64 * self.step_seconds
    }

    fn summary(&self, outcome: &Outcome) -> Summary {
        let (steps, digest): (u64, Digest) = self.parts.core.committed();
        let per_epoch = self.parts.core.shape().schedule.steps_per_epoch() as u64;
        let ledger = self.parts.core.ledger();
        let before = &self.parts.history;
        Summary {
            outcome: match outcome {
                Outcome::Done => "done",
                Outcome::Stopped => "stopped",
                Outcome::Diverged { .. } => "diverged",
            }
            .into(),
            steps,
            epochs: (steps / per_epoch) as u32,
            test: self.last_test.as_ref().map(TestSummary::from),
            parameters_sha256: self.parts.config.tensors.sha256(&self.parts.referee.snapshot().flat(false)),
            digest: digest.to_string(),
            wall_seconds: before.seconds + self.started.elapsed().as_secs_f64(),
            images_per_second: self.trained_samples as f64 / self.trained_seconds.max(f64::MIN_POSITIVE),
            median_seconds: self.times.medians(),
            samples: self.parts.core.samples_committed(),
            samples_lost: ledger.lost(),
            samples_duplicated: ledger.duplicated(),
            workers_joined: self.joined,
            workers_lost: self.lost,
            audits: self.parts.core.audits().equal + self.parts.core.audits().differed,
            audits_differed: self.parts.core.audits().differed,
        }
    }

    fn status(&self) -> v1::StatusReply {
        let core = &self.parts.core;
        let (step, _) = core.committed();
        let last = self.last_step.as_ref();
        let phase = match core.phase() {
            Phase::Waiting => "waiting",
            Phase::Recovering => "recovering",
            Phase::Training => "training",
            Phase::Testing => "testing",
            Phase::Finished => "finished",
        };
        let workers = core.members().0.iter().map(|(&session, m)| v1::WorkerStatus {
            session,
            name: m.name.clone(),
            device: m.device.clone(),
            state: match m.state {
                State::Joining => "joining",
                State::Loading => "loading",
                State::Ready if m.leaves > 0 || !m.testing.is_empty() => "working",
                State::Ready if core.flight().is_some() => "spare",
                State::Ready => "ready",
            }
            .into(),
            threads: m.threads,
            step: m.confirmed.unwrap_or(0),
            leaves: m.leaves,
            seconds_per_sample: m.per_sample.unwrap_or(0.0),
            samples: m.samples,
        });
        let config = &self.parts.config;
        v1::StatusReply {
            run: config.run.clone(),
            incarnation: self.parts.incarnation,
            model: config.model.to_string(),
            phase: phase.into(),
            step,
            steps: core.shape().steps(),
            epoch: core.shape().schedule.position((step + 1).min(core.shape().steps())).0,
            epochs: config.epochs,
            loss: last.map(|l| l.loss.into()),
            learning_rate: last.map_or(0.0, |l| f64::from(l.learning_rate)),
            images_per_second: last.map_or(0.0, |l| l.samples as f64 / self.step_seconds.max(1e-9)),
            seconds_left: self.seconds_left(),
            run_dir: self.parts.directory.path().display().to_string(),
            workers: workers.collect(),
            workers_wanted: core.shape().workers as u32,
            test: self.last_test.as_ref().map(|t| v1::TestStatus {
                loss: t.loss,
                digit_accuracy: t.digit_accuracy,
                sum_accuracy: t.sum_accuracy,
                difference_accuracy: t.difference_accuracy,
                all_correct: t.all_correct,
            }),
        }
    }
}
