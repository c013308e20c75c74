//! The compute thread: owns the engine, and does everything strictly in the order of steps.
//!
//! The control and the gradient stream race each other: a commit may arrive before the sum
//! it commits, a plan before the commit of the step before. Each kind of message waits in
//! its own queue here until its turn has come, so a replica is always at a committed step,
//! never between two (**REP-1**).

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use bytes::Bytes;
use tally_data::Samples;
use tally_exact::digest::{self, Digest};
use tally_exact::norm::first_non_finite;
use tally_exact::sum::{self, Fold};
use tally_exact::tree::{Node, Tree};
use tally_exact::update::Update;
use tally_exact::{chunk_range, chunks};
use tally_proto::pool::Pool;
use tally_proto::v1::{
    self, Receipt, Stamp, WorkerMessage, coordinator_message, gradient_down, worker_message,
};
use tally_proto::{convert, floats};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::sender::Item;
use crate::engine::{Engine, LabelLoss};

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

/// A state on its way in.
#[derive(Debug)]
struct Loading {
    step: u64,
    digest: Digest,
    parameters: Vec<f32>,
    momentum: Vec<f32>,
    missing: usize,
}

/// The second buffer: the update of the next step in the making.
#[derive(Debug)]
struct Second {
    step: u64,
    attempt: u32,
    begin: v1::Begin,
    /// Reduced chunks that wait for the clip factor.
    held: Vec<(usize, Bytes)>,
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
    pool: Pool,
    /// Full-length buffers for the gradients of leaves.
    buffers: Vec<Vec<f32>>,
    scratch: Vec<f32>,
    committed: Option<(u64, Digest)>,
    loading: Option<Loading>,
    second: Option<Second>,
    /// A step and the attempt at it up to which all are void. No other step's are: the step
    /// before is committed, though this replica may still be busy with its sum.
    void: (u64, u32),
    leaves: HashMap<(u64, u32), Samples>,
    gradients: VecDeque<(Stamp, gradient_down::Body, OwnedSemaphorePermit)>,
    plans: VecDeque<Plan>,
    commits: VecDeque<(u64, Digest)>,
    tests: VecDeque<(u64, u32, Samples)>,
    /// When this step's first contribution was begun.
    began_at: Option<Instant>,
    ended: bool,
}

impl Compute {
    /// A thread about to start. `stamp` is the session's.
    #[must_use]
    pub fn new(
        engine: Box<dyn Engine>,
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
            pool: Pool::default(),
            buffers: Vec::new(),
            scratch: Vec::new(),
            committed: None,
            loading: None,
            second: None,
            void: (0, 0),
            leaves: HashMap::new(),
            gradients: VecDeque::new(),
            plans: VecDeque::new(),
            commits: VecDeque::new(),
            tests: VecDeque::new(),
            began_at: None,
            ended: false,
        }
    }

    /// Works until the session ends, and gives the engine back, with the reason if it was
    /// this worker that could not go on.
    #[must_use]
    pub fn run(mut self, inbox: &Receiver<Input>) -> (Box<dyn Engine>, Option<String>) {
        let failed = self.main_loop(inbox).err().map(|Failure(what)| what);
        if let Some(what) = &failed {
            self.tell(0, worker_message::Body::Failed(v1::Failed { what: what.clone() }));
            // The coordinator answers by ending the session.
            while !matches!(inbox.recv(), Ok(Input::End) | Err(_)) {}
        }
        (self.engine, failed)
    }

    fn main_loop(&mut self, inbox: &Receiver<Input>) -> Result<(), Failure> {
        while !self.ended {
            match inbox.recv() {
                Ok(input) => self.take(input)?,
                Err(_) => return Ok(()),
            }
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
                let samples = plan.samples as usize;
                self.plans.push_back(Plan { step: stamp.step, attempt: stamp.attempt, samples, nodes });
            }
            Body::Commit(commit) => self.commits.push_back((stamp.step, Digest(commit.digest))),
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
            || self.advance_test()?)
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
                    for (index, data) in std::mem::take(&mut second.held) {
                        self.apply(index, &data)?;
                    }
                }
            }
        }
        Ok(true)
    }

    fn state_begins(&mut self, step: u64, state: &v1::State) -> Result<(), Failure> {
        let wanted = self.engine.manifest().len();
        if state.elements != wanted as u64 {
            return Err(Failure(format!(
                "the coordinator's state has {} elements, not {wanted}",
                state.elements
            )));
        }
        self.committed = None;
        self.second = None;
        self.loading = Some(Loading {
            step,
            digest: Digest(state.digest),
            parameters: vec![0.0; wanted],
            momentum: vec![0.0; wanted],
            missing: 2 * chunks(wanted),
        });
        Ok(())
    }

    fn state_chunk(&mut self, chunk: &v1::StateChunk) -> Result<(), Failure> {
        let Some(loading) = &mut self.loading else { return Err(Failure("a chunk of no state came".into())) };
        let into = if chunk.momentum { &mut loading.momentum } else { &mut loading.parameters };
        let range = chunk_range(into.len(), chunk.index as usize);
        floats::read(&chunk.data, &mut into[range])
            .map_err(|e| Failure(format!("the coordinator's state: {e}")))?;
        loading.missing = loading.missing.saturating_sub(1);
        if loading.missing > 0 {
            return Ok(());
        }
        let Some(loaded) = self.loading.take() else { return Ok(()) };
        let digest = self.engine.load(loaded.parameters, loaded.momentum);
        if digest != loaded.digest {
            return Err(Failure(format!("the state came damaged: digest {digest}, not {}", loaded.digest)));
        }
        self.committed = Some((loaded.step, digest));
        self.tell(loaded.step, worker_message::Body::Loaded(v1::Loaded { digest: digest.0 }));
        Ok(())
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
            self.apply(index, &reduced.data)
        } else {
            second.held.push((index, reduced.data));
            Ok(())
        }
    }

    /// Applies a reduced chunk to the second buffer.
    fn apply(&mut self, index: usize, data: &[u8]) -> Result<(), Failure> {
        let Some(second) = &mut self.second else { return Ok(()) };
        let range = chunk_range(self.engine.manifest().len(), index);
        self.scratch.resize(range.len(), 0.0);
        floats::read(data, &mut self.scratch)
            .map_err(|e| Failure(format!("chunk {index} of the sum: {e}")))?;
        let update = Update {
            learning_rate: second.begin.learning_rate,
            momentum: second.begin.momentum,
            clip: second.clip.unwrap_or(1.0),
        };
        let part = self.engine.apply(update, range.start, &self.scratch);
        second.digest = second.digest.and(part);
        second.applied += 1;
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
            self.engine.commit();
            self.committed = Some((step, digest));
            self.leaves.retain(|&(of, _), _| of > step);
        }
        let began_at = self.began_at.take();
        // With another digest this replica stays where it was; the coordinator sends it away.
        self.tell(
            step,
            worker_message::Body::Committed(v1::Committed {
                digest: second.digest.0,
                apply_seconds: between(second.whole_at, Some(Instant::now())),
                round_seconds: between(began_at, second.whole_at),
            }),
        );
        true
    }

    // ---- A contribution ----

    fn advance_plan(&mut self, inbox: &Receiver<Input>) -> Result<bool, Failure> {
        let at = self.step();
        let (Some(plan), Some(at)) = (self.plans.front_mut(), at) else { return Ok(false) };
        let (step, attempt, samples) = (plan.step, plan.attempt, plan.samples);
        if step <= at || (step == self.void.0 && attempt <= self.void.1) {
            self.plans.pop_front();
            return Ok(true);
        }
        if step > at.saturating_add(1) {
            return Ok(false);
        }
        match plan.nodes.pop_front() {
            Some(node) => self.contribute(inbox, step, attempt, samples, node)?,
            None => {
                self.plans.pop_front();
            }
        }
        Ok(true)
    }

    fn is_void(&self, step: u64, attempt: u32) -> bool {
        step == self.void.0 && attempt <= self.void.1
    }

    /// Whether what is computed for this attempt is still wanted.
    fn wanted(&self, step: u64, attempt: u32) -> bool {
        !self.ended && !self.is_void(step, attempt) && self.step() == Some(step - 1)
    }

    fn contribute(
        &mut self,
        inbox: &Receiver<Input>,
        step: u64,
        attempt: u32,
        samples: usize,
        node: Node,
    ) -> Result<(), Failure> {
        let (Some(tree), Some((_, digest))) = (self.tree, self.committed) else { return Ok(()) };
        let full: Vec<u32> =
            tree.leaves(node).filter(|&leaf| !tree.samples(leaf, samples).is_empty()).collect();
        let mut ids = Vec::new();
        for &leaf in &full {
            let dealt =
                self.leaves.get(&(step, leaf)).filter(|s| s.len() == tree.samples(leaf, samples).len());
            let dealt = dealt
                .ok_or_else(|| Failure(format!("the samples of leaf {leaf} of step {step} did not come")))?;
            ids.extend_from_slice(dealt.ids());
        }
        let header = v1::Header { node: node.0, digest: digest.0, samples: digest::of_samples(ids) };
        let _ = self.items.send(Item::Header { step, attempt, header });

        self.began_at.get_or_insert_with(Instant::now);
        let elements = self.engine.manifest().len();
        let last = tree.leaves(node).end - 1;
        let mut receipts = Vec::with_capacity(full.len());
        let mut fold = Fold::default();
        let mut computed = 0.0;
        let mut sent = false;
        for leaf in tree.leaves(node) {
            let Some(samples_of_leaf) = self.leaves.get(&(step, leaf)).filter(|_| full.contains(&leaf))
            else {
                fold.push(None, add_buffers(&mut self.buffers));
                continue;
            };
            let started = Instant::now();
            let mut out = self.buffers.pop().unwrap_or_default();
            out.resize(elements, 0.0);
            let scale = 1.0 / samples as f32;
            // The last leaf's gradient goes straight on through the left children that wait
            // for it, and leaves chunk by chunk while the rest of it is computed.
            let mut stream =
                Stream { items: &self.items, pool: &self.pool, attempt, node, next: 0, bad: None };
            let losses = {
                let pending: Vec<&Vec<f32>> =
                    if leaf == last { fold.pending().collect() } else { Vec::new() };
                let mut ready = |prefix: &[f32]| {
                    if leaf == last {
                        stream.send(prefix, elements, &pending);
                    }
                };
                self.engine.gradient(samples_of_leaf, scale, &mut out, &mut ready)
            };
            let losses = losses.map_err(|e| Failure(e.to_string()))?;
            let bad = stream.bad;
            sent |= leaf == last;
            if let Some(element) = bad {
                return self.not_finite(step, attempt, node, self.tensor_at(element));
            }
            if !losses.is_finite() {
                return self.not_finite(step, attempt, node, "the loss".into());
            }
            let count = samples_of_leaf.len() as u32;
            receipts.push(Receipt { leaf, samples: count, losses: Some(losses.into()) });
            if leaf == last {
                self.buffers.push(out);
            } else {
                fold.push(Some(out), add_buffers(&mut self.buffers));
            }
            computed += started.elapsed().as_secs_f64();
            // Between two leaves, see whether the attempt still stands.
            self.drain(inbox)?;
            if !self.wanted(step, attempt) {
                self.buffers.extend(fold.drain());
                return Ok(());
            }
        }
        if sent {
            self.buffers.extend(fold.drain());
        } else if let Some(sum) = fold.finish() {
            let mut stream =
                Stream { items: &self.items, pool: &self.pool, attempt, node, next: 0, bad: None };
            stream.send(&sum, elements, &[]);
            if let Some(element) = stream.bad {
                return self.not_finite(step, attempt, node, self.tensor_at(element));
            }
            self.buffers.push(sum);
        }
        let trailer = v1::Trailer { node: node.0, receipts, compute_seconds: computed };
        let _ = self.items.send(Item::Trailer { attempt, trailer });
        Ok(())
    }

    fn tensor_at(&self, element: usize) -> String {
        let manifest = self.engine.manifest();
        let at = (0..manifest.tensors().len()).find(|&i| manifest.range(i).contains(&element));
        at.map_or_else(|| "the gradient".into(), |i| manifest.tensors()[i].name.clone())
    }

    fn not_finite(&mut self, step: u64, attempt: u32, node: Node, tensor: String) -> Result<(), Failure> {
        tracing::warn!(step, "NaN or infinity in {tensor}");
        let stamp = Some(Stamp { step, attempt, ..self.stamp });
        let body = worker_message::Body::NonFinite(v1::NonFinite { node: node.0, tensor });
        let _ = self.control.send(WorkerMessage { stamp, body: Some(body) });
        Ok(())
    }

    // ---- The test pass ----

    fn advance_test(&mut self) -> Result<bool, Failure> {
        let (Some((step, _, _)), Some(at)) = (self.tests.front(), self.step()) else { return Ok(false) };
        if *step > at {
            return Ok(false);
        }
        let Some((step, leaf, samples)) = self.tests.pop_front() else { return Ok(false) };
        if step == at {
            let answers = self.engine.predict(&samples).map_err(|e| Failure(e.to_string()))?;
            let answers = answers.leaf(&samples, self.loss).to_message(leaf);
            self.tell(step, worker_message::Body::Answers(answers));
        }
        Ok(true)
    }
}

/// `left + right` of two full-length buffers; the right one is free again.
fn add_buffers(free: &mut Vec<Vec<f32>>) -> impl FnMut(Vec<f32>, Vec<f32>) -> Vec<f32> + '_ {
    |mut left, right| {
        sum::add(&mut left, &right);
        free.push(right);
        left
    }
}

/// A node's sum on its way to the sender, chunk by chunk.
struct Stream<'a> {
    items: &'a mpsc::UnboundedSender<Item>,
    pool: &'a Pool,
    attempt: u32,
    node: Node,
    next: usize,
    /// The first element that is NaN or infinite; nothing is sent from there on.
    bad: Option<usize>,
}

impl Stream<'_> {
    /// Sends the chunks that `prefix` completes, the waiting left children added on the way.
    fn send(&mut self, prefix: &[f32], elements: usize, pending: &[&Vec<f32>]) {
        while self.bad.is_none() {
            let range = chunk_range(elements, self.next);
            if range.is_empty() || range.end > prefix.len() {
                return;
            }
            let mut chunk = self.pool.take(range.len());
            chunk.copy_from_slice(&prefix[range.clone()]);
            for left in pending {
                sum::add_left(&left[range.clone()], &mut chunk);
            }
            if let Some(at) = first_non_finite(&chunk) {
                self.bad = Some(range.start + at);
                return;
            }
            let (attempt, node, index) = (self.attempt, self.node.0, self.next as u32);
            let _ = self.items.send(Item::Chunk { attempt, node, index, data: floats::share(chunk) });
            self.next += 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};

    use tally_exact::init;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::engine::ModelSpec;
    use crate::engine::backend::{self, BackendChoice};

    /// A compute thread with a small synthetic engine, and both ends of its queues.
    struct Bench {
        inputs: Sender<Input>,
        heard: mpsc::UnboundedReceiver<WorkerMessage>,
        items: mpsc::UnboundedReceiver<Item>,
        room: Arc<Semaphore>,
        /// A second engine that shows what should come out.
        twin: Box<dyn Engine>,
        thread: std::thread::JoinHandle<(Box<dyn Engine>, Option<String>)>,
    }

    const STAMP: Stamp = Stamp { run: 1, incarnation: 1, session: 1, step: 0, attempt: 0 };

    impl Bench {
        fn new() -> Self {
            let model: ModelSpec = "synthetic:parameters=1000".parse().unwrap();
            let build = || backend::build(&model, LabelLoss::default(), BackendChoice::Cpu, 0, 1).unwrap();
            let (control, heard) = mpsc::unbounded_channel();
            let (out, items) = mpsc::unbounded_channel();
            let (inputs, inbox) = channel();
            let compute = Compute::new(build(), 4, LabelLoss::default(), STAMP, control, out);
            let thread = std::thread::spawn(move || compute.run(&inbox));
            Self { inputs, heard, items, room: Arc::new(Semaphore::new(1000)), twin: build(), thread }
        }

        fn control(&self, step: u64, attempt: u32, body: coordinator_message::Body) {
            let permit = self.room.clone().try_acquire_owned().unwrap();
            self.inputs.send(Input::Control(Stamp { step, attempt, ..STAMP }, body, permit)).unwrap();
        }

        fn gradient(&self, step: u64, attempt: u32, body: gradient_down::Body) {
            let permit = self.room.clone().try_acquire_owned().unwrap();
            self.inputs.send(Input::Gradient(Stamp { step, attempt, ..STAMP }, body, permit)).unwrap();
        }

        fn load(&mut self) {
            let parameters = init::parameters(self.twin.manifest(), 1);
            let momentum = vec![0.0; parameters.len()];
            let digest = self.twin.load(parameters.clone(), momentum.clone()).0;
            let elements = parameters.len() as u64;
            self.gradient(0, 0, gradient_down::Body::State(v1::State { elements, digest }));
            for (momentum, values) in [(false, parameters), (true, momentum)] {
                let chunk = v1::StateChunk { momentum, index: 0, data: floats::copy(&values) };
                self.gradient(0, 0, gradient_down::Body::StateChunk(chunk));
            }
            assert!(matches!(self.hear(), worker_message::Body::Loaded(l) if l.digest == digest));
        }

        fn hear(&mut self) -> worker_message::Body {
            self.heard.blocking_recv().unwrap().body.unwrap()
        }

        /// Sends a step's sum; returns the digest the referee would have.
        fn sum(&mut self, step: u64, attempt: u32) -> u64 {
            let gradient: Vec<f32> = (0..1000).map(|i| (step as f32) * 0.001 * i as f32).collect();
            let begin = v1::Begin { learning_rate: 0.1, momentum: 0.9, unclipped: false };
            self.gradient(step, attempt, gradient_down::Body::Begin(begin));
            let reduced = v1::Reduced { index: 0, data: floats::copy(&gradient) };
            self.gradient(step, attempt, gradient_down::Body::Reduced(reduced));
            self.gradient(step, attempt, gradient_down::Body::Close(v1::Close { clip: 0.5 }));
            let update = Update { learning_rate: 0.1, momentum: 0.9, clip: 0.5 };
            let digest = self.twin.apply(update, 0, &gradient);
            self.twin.commit();
            digest.0
        }

        fn commit(&self, step: u64, digest: u64) {
            self.control(step, 1, coordinator_message::Body::Commit(v1::Commit { digest }));
        }

        fn committed(&mut self) -> u64 {
            match self.hear() {
                worker_message::Body::Committed(committed) => committed.digest,
                other => panic!("{other:?} where a commit should be"),
            }
        }

        fn end(self) -> Option<String> {
            self.inputs.send(Input::End).unwrap();
            self.thread.join().unwrap().1
        }
    }

    #[test]
    fn rep_1_the_streams_may_race_each_other() {
        let mut bench = Bench::new();
        bench.load();
        // The sums of three steps come before the first commit …
        let digests = [bench.sum(1, 1), bench.sum(2, 2), bench.sum(3, 3)];
        bench.commit(1, digests[0]);
        bench.commit(2, digests[1]);
        assert_eq!([bench.committed(), bench.committed()], [digests[0], digests[1]]);
        bench.commit(3, digests[2]);
        assert_eq!(bench.committed(), digests[2]);
        // … and a commit before its sum.
        let mut twin = Bench::new();
        twin.load();
        (1..=3).for_each(|step| {
            twin.sum(step, step as u32);
        });
        let fourth = twin.sum(4, 4);
        bench.commit(4, fourth);
        assert_eq!(bench.sum(4, 4), fourth);
        assert_eq!(bench.committed(), fourth);
        assert_eq!((bench.end(), twin.end()), (None, None));
    }

    #[test]
    fn a_new_attempt_voids_what_was_applied_for_the_old_one() {
        let mut bench = Bench::new();
        bench.load();
        let begin = v1::Begin { learning_rate: 0.1, momentum: 0.9, unclipped: true };
        bench.gradient(1, 1, gradient_down::Body::Begin(begin));
        let wrong = v1::Reduced { index: 0, data: floats::copy(&[9.0; 1000]) };
        bench.gradient(1, 1, gradient_down::Body::Reduced(wrong));
        bench.control(1, 1, coordinator_message::Body::Abort(v1::Abort { reason: "test".into() }));
        let digest = bench.sum(1, 2);
        bench.commit(1, digest);
        assert_eq!(bench.committed(), digest);
        assert_eq!(bench.end(), None);
    }

    /// LIVE-1: a slow replica hears that an attempt at the next step is void while it is busy
    /// with the sum of this one, which is committed.
    #[test]
    fn live_1_the_abort_of_a_step_leaves_the_step_before_alone() {
        for overtakes in [true, false] {
            let mut bench = Bench::new();
            bench.load();
            let abort = coordinator_message::Body::Abort(v1::Abort { reason: "test".into() });
            let first = if overtakes {
                bench.control(2, 2, abort);
                bench.sum(1, 1)
            } else {
                let first = bench.sum(1, 1);
                bench.control(2, 2, abort);
                first
            };
            bench.commit(1, first);
            assert_eq!(bench.committed(), first);
            let begin = v1::Begin { learning_rate: 0.1, momentum: 0.9, unclipped: true };
            bench.gradient(2, 2, gradient_down::Body::Begin(begin));
            let wrong = v1::Reduced { index: 0, data: floats::copy(&[9.0; 1000]) };
            bench.gradient(2, 2, gradient_down::Body::Reduced(wrong));
            let second = bench.sum(2, 3);
            bench.commit(2, second);
            assert_eq!(bench.committed(), second);
            assert_eq!(bench.end(), None);
        }
    }

    #[test]
    fn sum_1_a_subtree_is_the_sum_of_its_leaves_and_nodes_go_out_in_order() {
        let mut bench = Bench::new();
        bench.load();
        let samples = |id: u32| Samples::new(vec![id], vec![0; 784], vec![1], vec![2]).unwrap();
        // Three samples in four leaves: the first is empty.
        for leaf in 1..4 {
            let body = coordinator_message::Body::Leaf(convert::leaf(leaf, false, &samples(leaf)));
            bench.control(1, 0, body);
        }
        let plan = v1::Plan { samples: 3, nodes: vec![2, 3], digest: 0 };
        bench.control(1, 1, coordinator_message::Body::Plan(plan));
        let mut leaf = |id| {
            let mut out = vec![0.0; 1000];
            bench.twin.gradient(&samples(id), 1.0 / 3.0, &mut out, &mut |_| {}).unwrap();
            out
        };
        let mut right = leaf(2);
        sum::add(&mut right, &leaf(3));
        let expect = [(2, floats::copy(&leaf(1))), (3, floats::copy(&right))];
        for (wanted, sum) in expect {
            assert!(
                matches!(bench.items.blocking_recv(), Some(Item::Header { header, .. }) if header.node == wanted)
            );
            let Some(Item::Chunk { node, data, .. }) = bench.items.blocking_recv() else {
                panic!("no chunk")
            };
            assert_eq!((node, data), (wanted, sum));
            assert!(
                matches!(bench.items.blocking_recv(), Some(Item::Trailer { trailer, .. }) if trailer.node == wanted)
            );
        }
        assert_eq!(bench.end(), None);
    }

    #[test]
    fn trust_1_a_coordinator_that_breaks_the_rules_is_left_with_a_reason() {
        type Hostile = (fn(&mut Bench), &'static str);
        let hostile: [Hostile; 5] = [
            (
                |b| b.gradient(0, 0, gradient_down::Body::State(v1::State { elements: 5, digest: 0 })),
                "5 elements",
            ),
            (|b| b.gradient(0, 0, gradient_down::Body::StateChunk(v1::StateChunk::default())), "no state"),
            (
                |b| {
                    b.control(
                        1,
                        1,
                        coordinator_message::Body::Plan(v1::Plan { samples: 1, nodes: vec![99], digest: 0 }),
                    )
                },
                "99",
            ),
            (
                |b| {
                    b.control(
                        1,
                        1,
                        coordinator_message::Body::Leaf(v1::Leaf { ids: vec![1], ..Default::default() }),
                    )
                },
                "samples",
            ),
            (
                |b| {
                    b.load();
                    b.gradient(1, 1, gradient_down::Body::Begin(v1::Begin::default()));
                    b.gradient(
                        1,
                        1,
                        gradient_down::Body::Reduced(v1::Reduced { index: u32::MAX, data: Bytes::new() }),
                    );
                },
                "none",
            ),
        ];
        for (break_rules, word) in hostile {
            let mut bench = Bench::new();
            break_rules(&mut bench);
            let told = bench.hear();
            assert!(matches!(&told, worker_message::Body::Failed(f) if f.what.contains(word)), "{told:?}");
            assert!(bench.end().is_some_and(|why| why.contains(word)));
        }
    }
}
