//! The compute thread: it owns the engine and works strictly in the order of steps.
//!
//! The control stream and the gradient stream race each other: a commit may arrive before the sum
//! that it commits, and a plan before the commit of the step before. Each kind of message waits in
//! a queue of its own until its turn comes, so that a replica is always at a committed step,
//! never between two (**REP-1**).

mod contribution;
mod state;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use tally_numerics::digest::Digest;
use tally_numerics::schema::Sums;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::update::Update;
use tally_numerics::update::rule::Rule;
use tally_numerics::wire::WireDtype;
use tally_numerics::{chunk_range, chunks};
use tally_proto::convert::Microbatch;
use tally_proto::floats;
use tally_proto::pool::{Chunk, Pool};
use tally_proto::segment::Segment;
use tally_proto::span::SpanKind;
use tally_proto::update;
use tally_proto::v1::{
    self, MessageContext, WorkerMessage, coordinator_message, gradient_down, worker_message,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::sender::SendCommand;
use super::slots::SlotPool;
use super::timeline::Timeline;
use crate::engine::{Engine, EngineError};
use state::Loading;

/// Microbatches of a test pass that may wait; the coordinator sends two at a time.
const MAX_TESTS: usize = 64;
/// Plans and commits that may wait; the coordinator drops a replica that lags long before.
const MAX_WAITING: usize = 1 << 16;

/// An input of the compute thread. The permit is returned when the message has been processed.
#[derive(Debug)]
pub enum Input {
    /// From the control stream.
    Control(MessageContext, coordinator_message::Body, OwnedSemaphorePermit),
    /// From the gradient stream.
    Gradient(MessageContext, gradient_down::Body, OwnedSemaphorePermit),
    /// The session is over.
    End,
}

/// The update of the next step, which is being applied to the engine's second buffer.
#[derive(Debug)]
struct PendingUpdate {
    step: u64,
    attempt: u32,
    rules: Arc<[Rule]>,
    limit: f32,
    /// Reduced chunks that wait for the gradient's factor.
    deferred: Vec<v1::SumChunk>,
    seen: Vec<bool>,
    missing: usize,
    /// The update, once the gradient's factor is known.
    update: Option<Update>,
    applied: usize,
    digest: Digest,
    /// When the last reduced chunk came.
    complete_at: Option<Instant>,
}

#[derive(Debug)]
struct Plan {
    step: u64,
    attempt: u32,
    samples: usize,
    nodes: VecDeque<Node>,
    /// The kind of the work: an audit if other workers contribute the nodes and only the digest is wanted.
    kind: SpanKind,
}

/// The result of the thread when it has ended.
pub struct ComputeExit {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Steps whose state the engine still has, newest first, with their digests.
    pub states: Vec<(u64, Digest)>,
    /// The number of steps that it confirmed.
    pub steps: u64,
    /// Why this worker cannot go on, if it cannot.
    pub failed: Option<String>,
}

/// How gradients and sums travel.
#[derive(Debug, Default)]
pub struct GradientTransport {
    /// Their data type.
    pub dtype: WireDtype,
    /// The memory shared with a coordinator on this machine from which sums are read.
    pub sums: Option<Segment>,
    /// The slots of shared memory into which this worker writes its chunks.
    pub slots: Option<Arc<SlotPool>>,
}

/// Why the thread stops before it is asked to, in words for the coordinator.
struct ComputeError(String);

impl From<EngineError> for ComputeError {
    fn from(error: EngineError) -> Self {
        Self(error.to_string())
    }
}

/// The thread's state.
pub struct Compute {
    engine: Box<dyn Engine>,
    tree: Option<Tree>,
    context: MessageContext,
    control: mpsc::UnboundedSender<WorkerMessage>,
    commands: mpsc::UnboundedSender<SendCommand>,
    transport: GradientTransport,
    pool: Pool,
    /// Full-length buffers for the gradients of microbatches.
    buffers: Vec<Vec<f32>>,
    committed: Option<(u64, Digest)>,
    /// The step before, which the engine has until the next update overwrites it.
    previous: Option<(u64, Digest)>,
    /// States that the engine has from an earlier session, until one is loaded or resumed from.
    retained_states: Vec<(u64, Digest)>,
    loading: Option<Loading>,
    /// Moments that the optimizer keeps in the committed state.
    moments: usize,
    pending_update: Option<PendingUpdate>,
    /// A step, and the newest void attempt at it. Attempts at another step are not void: the step before
    /// is committed, though this replica may still be applying its sum.
    voided: (u64, u32),
    /// Samples by step and leaf of the tree.
    microbatches: HashMap<(u64, u32), Microbatch>,
    /// The microbatches that the engine was given ahead of their step.
    prefetched: HashSet<(u64, u32)>,
    gradients: VecDeque<(MessageContext, gradient_down::Body, OwnedSemaphorePermit)>,
    plans: VecDeque<Plan>,
    /// An attempt, and the nodes that were contributed to it.
    contributed: (u32, HashSet<Node>),
    commits: VecDeque<(u64, Digest)>,
    tests: VecDeque<(u64, u32, Microbatch)>,
    /// When this step's first contribution began.
    contribution_began: Option<Instant>,
    timeline: Timeline,
    /// Steps that were confirmed.
    steps: u64,
    ended: bool,
}

impl Compute {
    /// A thread to be started. `context` is the session's; `retained_states` are the steps whose states the
    /// engine has, newest first.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
        retained_states: Vec<(u64, Digest)>,
        microbatches: u32,
        context: MessageContext,
        control: mpsc::UnboundedSender<WorkerMessage>,
        commands: mpsc::UnboundedSender<SendCommand>,
    ) -> Self {
        Self {
            engine,
            tree: Tree::new(microbatches).ok(),
            context,
            control,
            commands,
            transport: GradientTransport::default(),
            pool: Pool::default(),
            buffers: Vec::new(),
            committed: None,
            previous: None,
            retained_states,
            loading: None,
            moments: 0,
            pending_update: None,
            voided: (0, 0),
            microbatches: HashMap::new(),
            prefetched: HashSet::new(),
            gradients: VecDeque::new(),
            plans: VecDeque::new(),
            contributed: (0, HashSet::new()),
            commits: VecDeque::new(),
            tests: VecDeque::new(),
            contribution_began: None,
            timeline: Timeline::default(),
            steps: 0,
            ended: false,
        }
    }

    /// The same with this transport for gradients.
    #[must_use]
    pub fn with_transport(self, transport: GradientTransport) -> Self {
        Self { transport, ..self }
    }

    /// The same with a timeline to record.
    #[must_use]
    pub fn with_timeline(self, timeline: Timeline) -> Self {
        Self { timeline, ..self }
    }

    /// Works until the session ends, and gives the engine back, with the reason if it was
    /// this worker that could not go on.
    #[must_use]
    pub fn run(mut self, inbox: &Receiver<Input>) -> ComputeExit {
        let failed = self.main_loop(inbox).err().map(|ComputeError(what)| what);
        if let Some(what) = &failed {
            self.send(0, worker_message::Body::Failed(v1::Failed { what: what.clone() }));
            // The coordinator answers by ending the session.
            while !matches!(inbox.recv(), Ok(Input::End) | Err(_)) {}
        }
        let mut states = self.retained_states;
        if let Some(committed) = self.committed {
            let previous = self.previous.filter(|_| self.engine.previous_state().is_some());
            states = std::iter::once(committed).chain(previous).collect();
        }
        ComputeExit { engine: self.engine, states, steps: self.steps, failed }
    }

    fn main_loop(&mut self, inbox: &Receiver<Input>) -> Result<(), ComputeError> {
        while !self.ended {
            let from = Instant::now();
            let Ok(input) = inbox.recv() else { return Ok(()) };
            self.timeline.record(SpanKind::Wait, 0, from);
            self.take(input)?;
            self.drain(inbox)?;
            while !self.ended && self.advance(inbox)? {
                self.drain(inbox)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, inbox: &Receiver<Input>) -> Result<(), ComputeError> {
        loop {
            match inbox.try_recv() {
                Ok(input) => self.take(input)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    self.ended = true;
                    return Ok(());
                }
            }
        }
    }

    fn send(&self, step: u64, body: worker_message::Body) {
        let context = Some(MessageContext { step, attempt: 0, ..self.context });
        let _ = self.control.send(WorkerMessage { context, body: Some(body) });
    }

    // ---- Inputs ----

    fn take(&mut self, input: Input) -> Result<(), ComputeError> {
        match input {
            Input::End => self.ended = true,
            Input::Gradient(context, body, permit) => self.gradients.push_back((context, body, permit)),
            Input::Control(context, body, _permit) => self.take_control(context, body)?,
        }
        Ok(())
    }

    fn take_control(
        &mut self,
        context: MessageContext,
        body: coordinator_message::Body,
    ) -> Result<(), ComputeError> {
        use coordinator_message::Body;
        match body {
            Body::Microbatch(leaf) => {
                let (index, test) = (leaf.leaf, leaf.test);
                let microbatches = self.tree.map_or(0, Tree::microbatches);
                // The samples of two steps may be here at a time, and a few of a test pass.
                let room = if test {
                    self.tests.len() < MAX_TESTS
                } else {
                    index < microbatches && self.microbatches.len() < 4 * microbatches as usize
                };
                if !room {
                    return Err(ComputeError(format!(
                        "the coordinator sent more samples than it has microbatches (microbatch {index})"
                    )));
                }
                let wrong = |e: String| ComputeError(format!("the coordinator's samples: {e}"));
                let samples = Microbatch::from_message(leaf).map_err(|e| wrong(e.to_string()))?;
                let samples = samples.at(context.step, index);
                self.engine.check(&samples).map_err(|e| wrong(e.to_string()))?;
                if test {
                    self.tests.push_back((context.step, index, samples));
                } else {
                    self.microbatches.insert((context.step, index), samples);
                }
            }
            Body::Plan(plan) => {
                let tree = self.tree.ok_or_else(|| {
                    ComputeError("the coordinator's number of microbatches cannot be used".into())
                })?;
                let nodes: VecDeque<Node> = plan.nodes.into_iter().map(Node).collect();
                if let Some(bad) = nodes.iter().find(|n| !tree.contains(**n)) {
                    return Err(ComputeError(format!(
                        "the coordinator planned {bad}, which is not in the tree"
                    )));
                }
                let kind = match (plan.audit, plan.takeover) {
                    (true, _) => SpanKind::Audit,
                    (false, true) => SpanKind::Takeover,
                    (false, false) => SpanKind::Compute,
                };
                let samples = plan.samples as usize;
                check_room(self.plans.len())?;
                let (step, attempt) = (context.step, context.attempt);
                self.plans.push_back(Plan { step, attempt, samples, nodes, kind });
            }
            Body::Commit(commit) => {
                check_room(self.commits.len())?;
                self.commits.push_back((context.step, Digest(commit.digest)));
            }
            Body::SendState(_) => self.upload(context.step)?,
            Body::ResumeRetained(keep) => self.keep(context.step, Digest(keep.digest))?,
            Body::Abort(abort) => {
                tracing::info!(step = context.step, attempt = context.attempt, "aborted: {}", abort.reason);
                // Attempts rise over all steps, and aborts come in their order.
                self.voided = (context.step, context.attempt);
                let _ = self.commands.send(SendCommand::Void { attempt: context.attempt });
                if self.pending_update.as_ref().is_some_and(|u| self.is_void(u.step, u.attempt)) {
                    self.pending_update = None;
                }
            }
            // The handshake is over, and the session loop handles the messages that end a session.
            _ => {}
        }
        Ok(())
    }

    // ---- The next thing to do ----

    fn step(&self) -> Option<u64> {
        self.committed.map(|(step, _)| step)
    }

    /// Does one thing whose turn has come; returns false if there is none.
    fn advance(&mut self, inbox: &Receiver<Input>) -> Result<bool, ComputeError> {
        Ok(self.advance_gradients()?
            || self.advance_commit()
            || self.advance_plan(inbox)?
            || self.advance_test()?
            || self.advance_prefetch())
    }

    fn advance_gradients(&mut self) -> Result<bool, ComputeError> {
        let Some((context, body, _)) = self.gradients.front() else { return Ok(false) };
        let is_state = matches!(body, gradient_down::Body::State(_) | gradient_down::Body::StateChunk(_));
        // The sum of the step after next waits until the next one is committed.
        if !is_state && self.step().is_some_and(|step| context.step > step.saturating_add(1)) {
            return Ok(false);
        }
        let context = *context;
        let Some((_, body, _permit)) = self.gradients.pop_front() else { return Ok(false) };
        match body {
            gradient_down::Body::State(state) => self.state_begins(context.step, &state)?,
            gradient_down::Body::StateChunk(chunk) => self.state_chunk(&chunk)?,
            _ if Some(context.step) != self.step().map(|s| s.saturating_add(1))
                || self.is_void(context.step, context.attempt) => {}
            gradient_down::Body::AttemptBegin(begin) => {
                let n = chunks(self.engine.manifest().trained_len());
                let rules = self.rules(&begin)?;
                let segments = self.engine.manifest().segments();
                let update =
                    (begin.unscaled).then(|| Update::new(rules.clone(), segments.clone(), 1.0, begin.limit));
                self.pending_update = Some(PendingUpdate {
                    step: context.step,
                    attempt: context.attempt,
                    rules,
                    limit: begin.limit,
                    deferred: Vec::new(),
                    seen: vec![false; n],
                    missing: n,
                    update,
                    applied: 0,
                    digest: Digest::default(),
                    complete_at: None,
                });
            }
            gradient_down::Body::SumChunk(reduced) => self.reduced(context, reduced)?,
            gradient_down::Body::AttemptClose(close) => {
                let Self { pending_update, engine, .. } = self;
                if let Some(pending) = pending_update.as_mut().filter(|u| u.attempt == context.attempt) {
                    let segments = engine.manifest().segments().clone();
                    pending.update =
                        Some(Update::new(pending.rules.clone(), segments, close.scale, pending.limit));
                    for reduced in std::mem::take(&mut pending.deferred) {
                        self.apply(&reduced)?;
                    }
                }
            }
        }
        Ok(true)
    }

    // ---- The update ----

    /// The rules of an attempt, which must be for this model and the state that it has.
    fn rules(&self, begin: &v1::AttemptBegin) -> Result<Arc<[Rule]>, ComputeError> {
        let rules: Option<Vec<Rule>> = begin.rules.iter().map(update::from_message).collect();
        let rules = rules.ok_or_else(|| {
            ComputeError("the coordinator trains with an optimizer that this build does not know".into())
        })?;
        let segments = self.engine.manifest().segments();
        if !Update::fits(&rules, segments) || rules[0].moments() != self.moments {
            return Err(ComputeError(format!(
                "the coordinator's optimizer has {} rules for {} groups of tensors, and {} moments for a state with {}",
                rules.len(),
                segments.groups(),
                rules.first().map_or(0, Rule::moments),
                self.moments
            )));
        }
        if begin.limit.is_nan() || begin.limit <= 0.0 {
            return Err(ComputeError(format!("the coordinator clips elements to ±{}", begin.limit)));
        }
        Ok(rules.into())
    }

    fn reduced(&mut self, context: MessageContext, reduced: v1::SumChunk) -> Result<(), ComputeError> {
        let Some(update) = self.pending_update.as_mut().filter(|u| u.attempt == context.attempt) else {
            return Ok(());
        };
        let index = reduced.index as usize;
        match update.seen.get_mut(index) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(ComputeError(format!("chunk {index} of the sum came twice, or is none"))),
        }
        update.missing -= 1;
        if update.missing == 0 {
            update.complete_at = Some(Instant::now());
        }
        if update.update.is_some() {
            self.apply(&reduced)
        } else {
            update.deferred.push(reduced);
            Ok(())
        }
    }

    /// Applies a reduced chunk to the second buffer. A chunk in shared memory is read only now: it stays
    /// there until the step's commit is confirmed.
    fn apply(&mut self, reduced: &v1::SumChunk) -> Result<(), ComputeError> {
        let Some(pending) = &mut self.pending_update else { return Ok(()) };
        let Some(update) = &pending.update else { return Ok(()) };
        let from = Instant::now();
        let range = chunk_range(self.engine.manifest().trained_len(), reduced.index as usize);
        let wrong = |what: String| ComputeError(format!("chunk {} of the sum: {what}", reduced.index));
        let (dtype, pool) = (self.transport.dtype, &self.pool);
        let copied: Chunk;
        let gradient: &[f32] = if let Some(slot) = reduced.slot {
            let shared = self.transport.sums.as_ref();
            let memory = shared.ok_or_else(|| {
                wrong("the coordinator says that it is in shared memory, but there is none".into())
            })?;
            let fetched = floats::fetch(dtype, memory, slot, range.len(), pool);
            copied = fetched.map_err(|e| wrong(e.to_string()))?;
            &copied
        } else if let Some(view) = floats::view(dtype, &reduced.data, range.len()) {
            view
        } else {
            let decoded = floats::decode(dtype, &reduced.data, range.len(), pool);
            copied = decoded.map_err(|e| wrong(e.to_string()))?;
            &copied
        };
        let part = self.engine.apply(update, range.start, gradient);
        pending.digest = pending.digest.and(part);
        pending.applied += 1;
        if pending.applied == pending.seen.len() {
            pending.digest = pending.digest.and(self.engine.finish_update()?);
        }
        self.timeline.record(SpanKind::Apply, 0, from);
        Ok(())
    }

    fn advance_commit(&mut self) -> bool {
        let (Some(&(step, digest)), Some(at)) = (self.commits.front(), self.step()) else { return false };
        if step <= at {
            self.commits.pop_front();
            return true;
        }
        let Some(update) = self
            .pending_update
            .take_if(|u| u.step == step && step == at.saturating_add(1) && u.applied == u.seen.len())
        else {
            return false;
        };
        self.commits.pop_front();
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        if update.digest == digest {
            let from = Instant::now();
            self.engine.commit();
            self.timeline.record(SpanKind::Apply, 0, from);
            self.previous = self.committed.replace((step, digest));
            self.steps += 1;
            self.microbatches.retain(|&(of, _), _| of > step);
            self.prefetched.retain(|&(of, _)| of > step);
        }
        let contribution_began = self.contribution_began.take();
        let spans = self.timeline.drain_spans();
        // With another digest this replica stays at its step, and the coordinator sends it away.
        self.send(
            step,
            worker_message::Body::Committed(v1::Committed {
                digest: update.digest.0,
                apply_seconds: between(update.complete_at, Some(Instant::now())),
                round_seconds: between(contribution_began, update.complete_at),
                spans,
            }),
        );
        true
    }

    // ---- Samples of a later step ----

    /// While this worker waits for the sum of a step, the samples of the next one go to the device.
    fn advance_prefetch(&mut self) -> bool {
        let Some(at) = self.step() else { return false };
        let later = self.microbatches.keys().filter(|&&(step, _)| step > at.saturating_add(1));
        let Some(&key) = later.filter(|&key| !self.prefetched.contains(key)).min() else { return false };
        self.engine.prefetch(&self.microbatches[&key]);
        self.prefetched.insert(key)
    }

    // ---- A contribution ----

    fn advance_plan(&mut self, inbox: &Receiver<Input>) -> Result<bool, ComputeError> {
        let at = self.step();
        let (Some(plan), Some(at)) = (self.plans.front_mut(), at) else { return Ok(false) };
        let (step, attempt, samples, kind) = (plan.step, plan.attempt, plan.samples, plan.kind);
        if step <= at || (step == self.voided.0 && attempt <= self.voided.1) {
            self.plans.pop_front();
            return Ok(true);
        }
        if step > at.saturating_add(1) {
            return Ok(false);
        }
        match plan.nodes.pop_front() {
            Some(node) => {
                if self.contributed.0 != attempt {
                    self.contributed = (attempt, HashSet::new());
                }
                if kind != SpanKind::Audit && !self.contributed.1.insert(node) {
                    return Err(ComputeError(format!("the coordinator planned {node} twice")));
                }
                self.contribute(inbox, step, attempt, samples, node, kind)?;
            }
            None => {
                self.plans.pop_front();
            }
        }
        Ok(true)
    }

    fn is_void(&self, step: u64, attempt: u32) -> bool {
        step == self.voided.0 && attempt <= self.voided.1
    }

    /// Whether a contribution to this attempt is still wanted: not if the attempt is void, or if other workers were
    /// faster and the step is committed.
    fn wanted(&self, step: u64, attempt: u32) -> bool {
        !self.ended
            && !self.is_void(step, attempt)
            && self.step() == Some(step - 1)
            && self.commits.iter().all(|(committed, _)| *committed < step)
    }

    // ---- The test pass ----

    fn advance_test(&mut self) -> Result<bool, ComputeError> {
        let (Some((step, _, _)), Some(at)) = (self.tests.front(), self.step()) else { return Ok(false) };
        if *step > at {
            return Ok(false);
        }
        let Some((step, leaf, samples)) = self.tests.pop_front() else { return Ok(false) };
        if step == at {
            let from = Instant::now();
            let Sums(sums) = self.engine.evaluate(&samples)?;
            self.timeline.record(SpanKind::Test, 1, from);
            let spans = self.timeline.drain_spans();
            self.send(step, worker_message::Body::Evaluated(v1::Evaluated { leaf, sums, spans }));
        }
        Ok(true)
    }
}

/// Checks that one more message may wait, where so many do (**TRUST-1**).
fn check_room(waiting: usize) -> Result<(), ComputeError> {
    if waiting < MAX_WAITING {
        Ok(())
    } else {
        Err(ComputeError("the coordinator is thousands of messages ahead".into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
