//! The compute thread: owns the engine, and does everything strictly in the order of steps.
//!
//! The control and the gradient stream race each other: a commit may arrive before the sum
//! it commits, a plan before the commit of the step before. Each kind of message waits in
//! its own queue here until its turn has come, so a replica is always at a committed step,
//! never between two (**REP-1**).

mod contribution;
mod state;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use tally_data::Samples;
use tally_exact::digest::Digest;
use tally_exact::tree::{Node, Tree};
use tally_exact::update::Update;
use tally_exact::wire::WireDtype;
use tally_exact::{chunk_range, chunks};
use tally_proto::pool::{Chunk, Pool};
use tally_proto::segment::Segment;
use tally_proto::span::SpanKind;
use tally_proto::v1::{self, Stamp, WorkerMessage, coordinator_message, gradient_down, worker_message};
use tally_proto::{convert, floats};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::places::Places;
use super::sender::Item;
use super::timeline::Timeline;
use crate::engine::{Engine, LabelLoss};
use state::Loading;

/// Leaves of a test pass that may wait; the coordinator deals two at a time.
const MOST_TESTS: usize = 64;
/// Plans and commits that may wait: a replica that lags further is dropped long before.
const MOST_WAITING: usize = 1 << 16;

/// What reaches the compute thread. The permit goes back when the message is done with.
#[derive(Debug)]
pub enum Input {
    /// From the control stream.
    Control(Stamp, coordinator_message::Body, OwnedSemaphorePermit),
    /// From the gradient stream.
    Gradient(Stamp, gradient_down::Body, OwnedSemaphorePermit),
    /// The session is over.
    End,
}

/// The second buffer: the update of the next step in the making.
#[derive(Debug)]
struct Second {
    step: u64,
    attempt: u32,
    begin: v1::Begin,
    /// Reduced chunks that wait for the clip factor.
    held: Vec<v1::Reduced>,
    seen: Vec<bool>,
    missing: usize,
    clip: Option<f32>,
    applied: usize,
    digest: Digest,
    /// When the last reduced chunk came.
    whole_at: Option<Instant>,
}

#[derive(Debug)]
struct Plan {
    step: u64,
    attempt: u32,
    samples: usize,
    nodes: VecDeque<Node>,
    /// What computing them is: an audit, if others contribute them and only their digest is wanted.
    kind: SpanKind,
}

/// What is left when the thread has ended.
pub struct Rest {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Steps whose state it holds, newest first, with their digests.
    pub held: Vec<(u64, Digest)>,
    /// Steps that it confirmed.
    pub steps: u64,
    /// Why this worker cannot go on, if it cannot.
    pub failed: Option<String>,
}

/// How gradients travel.
#[derive(Debug, Default)]
pub struct Travel {
    /// As what.
    pub dtype: WireDtype,
    /// Memory shared with a coordinator on this machine, where sums lie.
    pub sums: Option<Segment>,
    /// The same, where this worker's chunks go.
    pub places: Option<Arc<Places>>,
}

/// Why the thread stops before it is told to, in words for the coordinator.
struct Failure(String);

/// The thread's state.
pub struct Compute {
    engine: Box<dyn Engine>,
    tree: Option<Tree>,
    loss: LabelLoss,
    stamp: Stamp,
    control: mpsc::UnboundedSender<WorkerMessage>,
    items: mpsc::UnboundedSender<Item>,
    travel: Travel,
    pool: Pool,
    /// Full-length buffers for the gradients of leaves.
    buffers: Vec<Vec<f32>>,
    committed: Option<(u64, Digest)>,
    /// The step before, as long as the engine holds it.
    before: Option<(u64, Digest)>,
    /// What the engine holds from an earlier session, until a state is loaded or kept.
    held: Vec<(u64, Digest)>,
    loading: Option<Loading>,
    second: Option<Second>,
    /// A step and the attempt at it up to which all are void. No other step's are: the step
    /// before is committed, though this replica may still be busy with its sum.
    void: (u64, u32),
    leaves: HashMap<(u64, u32), Samples>,
    /// Those of them that the engine was given ahead of their step.
    ahead: HashSet<(u64, u32)>,
    gradients: VecDeque<(Stamp, gradient_down::Body, OwnedSemaphorePermit)>,
    plans: VecDeque<Plan>,
    /// An attempt, and the nodes that were contributed to it.
    contributed: (u32, HashSet<Node>),
    commits: VecDeque<(u64, Digest)>,
    tests: VecDeque<(u64, u32, Samples)>,
    /// When this step's first contribution was begun.
    began_at: Option<Instant>,
    timeline: Timeline,
    /// Steps that were confirmed.
    steps: u64,
    ended: bool,
}

impl Compute {
    /// A thread about to start. `stamp` is the session's; `held` says which steps' states the
    /// engine holds, newest first.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
        held: Vec<(u64, Digest)>,
        shards: u32,
        loss: LabelLoss,
        stamp: Stamp,
        control: mpsc::UnboundedSender<WorkerMessage>,
        items: mpsc::UnboundedSender<Item>,
    ) -> Self {
        Self {
            engine,
            tree: Tree::new(shards).ok(),
            loss,
            stamp,
            control,
            items,
            travel: Travel::default(),
            pool: Pool::default(),
            buffers: Vec::new(),
            committed: None,
            before: None,
            held,
            loading: None,
            second: None,
            void: (0, 0),
            leaves: HashMap::new(),
            ahead: HashSet::new(),
            gradients: VecDeque::new(),
            plans: VecDeque::new(),
            contributed: (0, HashSet::new()),
            commits: VecDeque::new(),
            tests: VecDeque::new(),
            began_at: None,
            timeline: Timeline::default(),
            steps: 0,
            ended: false,
        }
    }

    /// The same with gradients that travel so.
    #[must_use]
    pub fn travelling(self, travel: Travel) -> Self {
        Self { travel, ..self }
    }

    /// The same with a timeline to keep.
    #[must_use]
    pub fn recording(self, timeline: Timeline) -> Self {
        Self { timeline, ..self }
    }

    /// Works until the session ends, and gives the engine back, with the reason if it was
    /// this worker that could not go on.
    #[must_use]
    pub fn run(mut self, inbox: &Receiver<Input>) -> Rest {
        let failed = self.main_loop(inbox).err().map(|Failure(what)| what);
        if let Some(what) = &failed {
            self.tell(0, worker_message::Body::Failed(v1::Failed { what: what.clone() }));
            // The coordinator answers by ending the session.
            while !matches!(inbox.recv(), Ok(Input::End) | Err(_)) {}
        }
        let mut held = self.held;
        if let Some(committed) = self.committed {
            held = std::iter::once(committed)
                .chain(self.before.filter(|_| self.engine.before().is_some()))
                .collect();
        }
        Rest { engine: self.engine, held, steps: self.steps, failed }
    }

    fn main_loop(&mut self, inbox: &Receiver<Input>) -> Result<(), Failure> {
        while !self.ended {
            let from = Instant::now();
            let Ok(input) = inbox.recv() else { return Ok(()) };
            self.timeline.did(SpanKind::Wait, 0, from);
            self.take(input)?;
            self.drain(inbox)?;
            while !self.ended && self.advance(inbox)? {
                self.drain(inbox)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, inbox: &Receiver<Input>) -> Result<(), Failure> {
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

    fn tell(&self, step: u64, body: worker_message::Body) {
        let stamp = Some(Stamp { step, attempt: 0, ..self.stamp });
        let _ = self.control.send(WorkerMessage { stamp, body: Some(body) });
    }

    // ---- What comes in ----

    fn take(&mut self, input: Input) -> Result<(), Failure> {
        match input {
            Input::End => self.ended = true,
            Input::Gradient(stamp, body, permit) => self.gradients.push_back((stamp, body, permit)),
            Input::Control(stamp, body, _permit) => self.take_control(stamp, body)?,
        }
        Ok(())
    }

    fn take_control(&mut self, stamp: Stamp, body: coordinator_message::Body) -> Result<(), Failure> {
        use coordinator_message::Body;
        match body {
            Body::Leaf(leaf) => {
                let (number, test) = (leaf.leaf, leaf.test);
                let shards = self.tree.map_or(0, Tree::shards);
                // Two steps' leaves are what there can be, and a few of a test pass.
                let room = if test {
                    self.tests.len() < MOST_TESTS
                } else {
                    number < shards && self.leaves.len() < 4 * shards as usize
                };
                if !room {
                    return Err(Failure(format!(
                        "the coordinator sent more samples than it has micro-shards (leaf {number})"
                    )));
                }
                let samples =
                    convert::samples(leaf).map_err(|e| Failure(format!("the coordinator's samples: {e}")))?;
                if test {
                    self.tests.push_back((stamp.step, number, samples));
                } else {
                    self.leaves.insert((stamp.step, number), samples);
                }
            }
            Body::Plan(plan) => {
                let tree =
                    self.tree.ok_or_else(|| Failure("the coordinator's number of shards is none".into()))?;
                let nodes: VecDeque<Node> = plan.nodes.into_iter().map(Node).collect();
                if let Some(bad) = nodes.iter().find(|n| !tree.contains(**n)) {
                    return Err(Failure(format!("the coordinator planned {bad}, which the tree has not")));
                }
                let kind = match (plan.audit, plan.takeover) {
                    (true, _) => SpanKind::Audit,
                    (false, true) => SpanKind::Takeover,
                    (false, false) => SpanKind::Compute,
                };
                let samples = plan.samples as usize;
                if self.plans.len() >= MOST_WAITING || self.commits.len() >= MOST_WAITING {
                    return Err(Failure("the coordinator is thousands of messages ahead".into()));
                }
                let (step, attempt) = (stamp.step, stamp.attempt);
                self.plans.push_back(Plan { step, attempt, samples, nodes, kind });
            }
            Body::Commit(commit) => self.commits.push_back((stamp.step, Digest(commit.digest))),
            Body::Upload(_) => self.upload(stamp.step)?,
            Body::Keep(keep) => self.keep(stamp.step, Digest(keep.digest))?,
            Body::Abort(abort) => {
                tracing::info!(step = stamp.step, attempt = stamp.attempt, "aborted: {}", abort.reason);
                // Attempts rise over all steps, and aborts come in their order.
                self.void = (stamp.step, stamp.attempt);
                let _ = self.items.send(Item::Void { attempt: stamp.attempt });
                if self.second.as_ref().is_some_and(|s| self.is_void(s.step, s.attempt)) {
                    self.second = None;
                }
            }
            // The handshake is over, and the ends are the pump's.
            _ => {}
        }
        Ok(())
    }

    // ---- What is next ----

    fn step(&self) -> Option<u64> {
        self.committed.map(|(step, _)| step)
    }

    /// Does one thing whose turn has come; false if there is none.
    fn advance(&mut self, inbox: &Receiver<Input>) -> Result<bool, Failure> {
        Ok(self.advance_gradients()?
            || self.advance_commit()
            || self.advance_plan(inbox)?
            || self.advance_test()?
            || self.advance_ahead())
    }

    fn advance_gradients(&mut self) -> Result<bool, Failure> {
        let Some((stamp, body, _)) = self.gradients.front() else { return Ok(false) };
        let is_state = matches!(body, gradient_down::Body::State(_) | gradient_down::Body::StateChunk(_));
        // The sum of the step after next waits until the next one is committed.
        if !is_state && self.step().is_some_and(|step| stamp.step > step.saturating_add(1)) {
            return Ok(false);
        }
        let stamp = *stamp;
        let Some((_, body, _permit)) = self.gradients.pop_front() else { return Ok(false) };
        match body {
            gradient_down::Body::State(state) => self.state_begins(stamp.step, &state)?,
            gradient_down::Body::StateChunk(chunk) => self.state_chunk(&chunk)?,
            _ if Some(stamp.step) != self.step().map(|s| s.saturating_add(1))
                || self.is_void(stamp.step, stamp.attempt) => {}
            gradient_down::Body::Begin(begin) => {
                let n = chunks(self.engine.manifest().len());
                self.second = Some(Second {
                    step: stamp.step,
                    attempt: stamp.attempt,
                    begin,
                    held: Vec::new(),
                    seen: vec![false; n],
                    missing: n,
                    clip: begin.unclipped.then_some(1.0),
                    applied: 0,
                    digest: Digest::default(),
                    whole_at: None,
                });
            }
            gradient_down::Body::Reduced(reduced) => self.reduced(stamp, reduced)?,
            gradient_down::Body::Close(close) => {
                if let Some(second) = self.second.as_mut().filter(|s| s.attempt == stamp.attempt) {
                    second.clip = Some(close.clip);
                    for reduced in std::mem::take(&mut second.held) {
                        self.apply(&reduced)?;
                    }
                }
            }
        }
        Ok(true)
    }

    // ---- The update ----

    fn reduced(&mut self, stamp: Stamp, reduced: v1::Reduced) -> Result<(), Failure> {
        let Some(second) = self.second.as_mut().filter(|s| s.attempt == stamp.attempt) else { return Ok(()) };
        let index = reduced.index as usize;
        match second.seen.get_mut(index) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Failure(format!("chunk {index} of the sum came twice, or is none"))),
        }
        second.missing -= 1;
        if second.missing == 0 {
            second.whole_at = Some(Instant::now());
        }
        if second.clip.is_some() {
            self.apply(&reduced)
        } else {
            second.held.push(reduced);
            Ok(())
        }
    }

    /// Applies a reduced chunk to the second buffer. One in shared memory is read only now,
    /// while it is needed; it stays there until the step's commit is confirmed.
    fn apply(&mut self, reduced: &v1::Reduced) -> Result<(), Failure> {
        let Some(second) = &mut self.second else { return Ok(()) };
        let from = Instant::now();
        let range = chunk_range(self.engine.manifest().len(), reduced.index as usize);
        let wrong = |what: String| Failure(format!("chunk {} of the sum: {what}", reduced.index));
        let (dtype, pool) = (self.travel.dtype, &self.pool);
        let copied: Chunk;
        let gradient: &[f32] = if let Some(place) = reduced.place {
            let shared = self.travel.sums.as_ref();
            let memory =
                shared.ok_or_else(|| wrong("it is said to lie in memory that is not shared".into()))?;
            let fetched = floats::fetch(dtype, memory, place, range.len(), pool);
            copied = fetched.map_err(|e| wrong(e.to_string()))?;
            &copied
        } else if let Some(view) = floats::view(dtype, &reduced.data, range.len()) {
            view
        } else {
            let decoded = floats::decode(dtype, &reduced.data, range.len(), pool);
            copied = decoded.map_err(|e| wrong(e.to_string()))?;
            &copied
        };
        let update = Update {
            learning_rate: second.begin.learning_rate,
            momentum: second.begin.momentum,
            clip: second.clip.unwrap_or(1.0),
        };
        let part = self.engine.apply(update, range.start, gradient);
        second.digest = second.digest.and(part);
        second.applied += 1;
        if second.applied == second.seen.len() {
            let rest = self.engine.finish().map_err(|e| Failure(e.to_string()))?;
            second.digest = second.digest.and(rest);
        }
        self.timeline.did(SpanKind::Apply, 0, from);
        Ok(())
    }

    fn advance_commit(&mut self) -> bool {
        let (Some(&(step, digest)), Some(at)) = (self.commits.front(), self.step()) else { return false };
        if step <= at {
            self.commits.pop_front();
            return true;
        }
        let Some(second) = self
            .second
            .take_if(|s| s.step == step && step == at.saturating_add(1) && s.applied == s.seen.len())
        else {
            return false;
        };
        self.commits.pop_front();
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        if second.digest == digest {
            let from = Instant::now();
            self.engine.commit();
            self.timeline.did(SpanKind::Apply, 0, from);
            self.before = self.committed.replace((step, digest));
            self.steps += 1;
            self.leaves.retain(|&(of, _), _| of > step);
            self.ahead.retain(|&(of, _)| of > step);
        }
        let began_at = self.began_at.take();
        let spans = self.timeline.told();
        // With another digest this replica stays where it was; the coordinator sends it away.
        self.tell(
            step,
            worker_message::Body::Committed(v1::Committed {
                digest: second.digest.0,
                apply_seconds: between(second.whole_at, Some(Instant::now())),
                round_seconds: between(began_at, second.whole_at),
                spans,
            }),
        );
        true
    }

    // ---- Samples of a later step ----

    /// While the sum of a step is awaited, the samples of the one after go to the device.
    fn advance_ahead(&mut self) -> bool {
        let Some(at) = self.step() else { return false };
        let later = self.leaves.keys().filter(|&&(step, _)| step > at.saturating_add(1));
        let Some(&key) = later.filter(|&key| !self.ahead.contains(key)).min() else { return false };
        self.engine.prefetch(&self.leaves[&key]);
        self.ahead.insert(key)
    }

    // ---- A contribution ----

    fn advance_plan(&mut self, inbox: &Receiver<Input>) -> Result<bool, Failure> {
        let at = self.step();
        let (Some(plan), Some(at)) = (self.plans.front_mut(), at) else { return Ok(false) };
        let (step, attempt, samples, kind) = (plan.step, plan.attempt, plan.samples, plan.kind);
        if step <= at || (step == self.void.0 && attempt <= self.void.1) {
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
                    return Err(Failure(format!("the coordinator planned {node} twice")));
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
        step == self.void.0 && attempt <= self.void.1
    }

    /// Whether what is computed for this attempt is still wanted; not if others were faster
    /// and the step is committed.
    fn wanted(&self, step: u64, attempt: u32) -> bool {
        !self.ended
            && !self.is_void(step, attempt)
            && self.step() == Some(step - 1)
            && self.commits.iter().all(|(committed, _)| *committed < step)
    }

    // ---- The test pass ----

    fn advance_test(&mut self) -> Result<bool, Failure> {
        let (Some((step, _, _)), Some(at)) = (self.tests.front(), self.step()) else { return Ok(false) };
        if *step > at {
            return Ok(false);
        }
        let Some((step, leaf, samples)) = self.tests.pop_front() else { return Ok(false) };
        if step == at {
            let from = Instant::now();
            let answers = self.engine.predict(&samples).map_err(|e| Failure(e.to_string()))?;
            let answers = answers.leaf(&samples, self.loss).to_message(leaf);
            self.timeline.did(SpanKind::Test, 1, from);
            let spans = self.timeline.told();
            self.tell(step, worker_message::Body::Answers(v1::Answers { spans, ..answers }));
        }
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
