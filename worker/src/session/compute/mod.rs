//! The compute thread: it owns the engine and works strictly in the order of steps.
//!
//! The control stream and the gradient stream race each other: a commit may arrive before the sum
//! that it commits, and a plan before the commit of the step before. Each kind of message waits in
//! a queue of its own until its turn comes, so that a replica is always at a committed step,
//! never between two (**REP-1**).

mod contribution;
mod state;
mod update;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use tally_numerics::digest::Digest;
use tally_numerics::schema::Sums;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::convert::Microbatch;
use tally_proto::pool::Pool;
use tally_proto::segment::Segment;
use tally_proto::span::SpanKind;
use tally_proto::v1::{
    self, MessageContext, WorkerMessage, coordinator_message, gradient_down, worker_message,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::messages::{Input, SendCommand};
use super::slots::SlotPool;
use super::timeline::Timeline;
use crate::engine::{Engine, EngineError};
use state::Loading;
use update::PendingUpdate;

/// Microbatches of a test pass that may wait; the coordinator sends two at a time.
const MAX_TESTS: usize = 64;
/// Plans and commits that may wait; the coordinator drops a replica that lags long before.
const MAX_WAITING: usize = 1 << 16;

#[derive(Debug)]
struct Plan {
    step: u64,
    attempt: u32,
    samples: usize,
    nodes: VecDeque<Node>,
    /// The kind of the work: an audit if other workers contribute the nodes and only the digest is wanted.
    kind: SpanKind,
    /// Their chunks go to owners.
    to_owners: bool,
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
            let input = match self.need_at() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(from)),
            };
            self.timeline.record(SpanKind::Wait, 0, from);
            match input {
                Ok(input) => self.take(input)?,
                Err(RecvTimeoutError::Timeout) => self.need(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
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
                let to_owners = plan.to_owners;
                self.plans.push_back(Plan { step, attempt, samples, nodes, kind, to_owners });
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
        let at = self.step();
        let is_state = |body: &gradient_down::Body| {
            matches!(body, gradient_down::Body::State(_) | gradient_down::Body::StateChunk(_))
        };
        // The sum of the step after next waits until the next one is committed. An owner's sum may come after the
        // coordinator's messages of a later step, so the first message whose turn has come is taken.
        let has_turn = |(context, body, _): &(MessageContext, gradient_down::Body, _)| {
            is_state(body) || at.is_none_or(|step| context.step <= step.saturating_add(1))
        };
        let Some(next) = self.gradients.iter().position(has_turn) else { return Ok(false) };
        let Some((context, body, _permit)) = self.gradients.remove(next) else { return Ok(false) };
        match body {
            // This replica lagged and was sent a state, and got there by itself meanwhile.
            _ if is_state(&body) && at.is_some_and(|at| context.step <= at) => {}
            gradient_down::Body::State(state) => self.state_begins(context.step, &state)?,
            gradient_down::Body::StateChunk(chunk) => self.state_chunk(&chunk)?,
            _ if Some(context.step) != self.step().map(|s| s.saturating_add(1))
                || self.is_void(context.step, context.attempt) => {}
            gradient_down::Body::AttemptBegin(begin) => self.attempt_begins(context, &begin)?,
            gradient_down::Body::SumChunk(reduced) => self.reduced(context, reduced)?,
            gradient_down::Body::AttemptClose(close) => self.attempt_closes(context, &close)?,
            // It is the sender's.
            gradient_down::Body::TakeBack(_) => {}
        }
        Ok(true)
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
        let to_owners = plan.to_owners;
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
                self.contribute(inbox, step, attempt, samples, node, (kind, to_owners))?;
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
