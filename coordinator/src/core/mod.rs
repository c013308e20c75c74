//! The coordinator's decisions, as a pure state machine.
//!
//! Events go in, actions come out ([`Core::handle`]). There is no socket, clock, thread,
//! file or random source in here, so nothing in here can fail or wait, and any schedule of
//! events replays exactly. The shell around it ([`crate::shell`]) holds the floats and the
//! sockets and performs the actions in their order.
//!
//! Promises kept here: **DATA-1** ([`ledger`]), **SUM-1** ([`reduction`], [`assign`]),
//! **REP-1** (every digest a worker sends is compared with the referee's), **LIVE-1** (a
//! lost worker's leaves are dealt again within the step).

pub mod assign;
pub mod deck;
pub mod events;
pub mod ledger;
pub mod members;
pub mod recipe;
pub mod reduction;
pub mod step;
pub mod test_pass;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod simulation;

use std::collections::VecDeque;
use std::time::Duration;

use tally_data::Schedule;
use tally_exact::digest::Digest;
use tally_exact::tree::{Node, Tree};

use assign::Load;
use deck::Deck;
use events::{Action, Committed, Event, Note, Origin, Outcome};
use ledger::Ledger;
use members::{Member, Members, Session, State};
use recipe::Recipe;
use reduction::Verdict;
use step::{Receipt, StepInFlight};
use test_pass::{OUTSTANDING, TestPass};

/// Commits whose digests are remembered; a replica that confirms an older one lags too far.
const RECENT: usize = 1024;

/// What a run is, as far as decisions go. Fixed for the run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The reduction tree.
    pub tree: Tree,
    /// Chunks of a gradient.
    pub chunks: u32,
    /// Which samples each step has.
    pub schedule: Schedule,
    /// Epochs of the run.
    pub epochs: u32,
    /// Samples of the test set.
    pub test_samples: usize,
    /// The optimizer's settings.
    pub recipe: Recipe,
    /// A checkpoint after every so many steps, beside those at the ends of epochs.
    pub checkpoint_every: Option<u64>,
    /// Workers to wait for before a new run starts.
    pub workers: usize,
}

impl Shape {
    /// Steps of the whole run.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.schedule.steps_per_epoch() as u64 * u64::from(self.epochs)
    }
}

/// What the run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Too few workers to start.
    Waiting,
    /// Training.
    Training,
    /// In a test pass.
    Testing,
    /// Over.
    Finished,
}

/// The coordinator's state, except floats and sockets.
#[derive(Debug)]
pub struct Core {
    shape: Shape,
    deck: Deck,
    members: Members,
    ledger: Ledger,
    /// Samples of the epochs that were whole before this start.
    samples_before: u64,
    /// The referee's step and digest.
    committed: u64,
    digest: Digest,
    /// The digests of the last commits, with which replicas that lag a little are compared.
    recent: VecDeque<(u64, Digest)>,
    /// The newest checkpoint's step, so that none is written twice.
    checkpointed: Option<u64>,
    attempt: u32,
    flight: Option<StepInFlight>,
    test: Option<TestPass>,
    /// The epochs whose test pass is done.
    tested: u32,
    started: bool,
    stopping: bool,
    finished: bool,
    /// Who found NaN in a gradient of the step being computed: one worker's may be its own
    /// fault, so others compute the step without it; a second worker's is the model's.
    non_finite: Option<Session>,
    /// The last assignment's quotas and the workers they were for, kept while they serve.
    last_quotas: Option<(Vec<Session>, Vec<u32>)>,
    actions: Vec<Action>,
}

impl Core {
    /// A run at `committed` steps with the referee's `digest`. A new run is at 0; a
    /// resumed one waits for no more than one worker. `tested` counts the epochs whose
    /// test pass is done.
    #[must_use]
    pub fn new(shape: Shape, committed: u64, digest: Digest, tested: u32) -> Self {
        let deck = Deck::new(shape.schedule);
        let mut core = Self {
            deck,
            members: Members::default(),
            ledger: Ledger::new(shape.schedule.samples()),
            samples_before: committed / shape.schedule.steps_per_epoch() as u64
                * shape.schedule.samples() as u64,
            committed,
            digest,
            recent: VecDeque::from([(committed, digest)]),
            checkpointed: (committed > 0).then_some(committed),
            attempt: 0,
            flight: None,
            test: None,
            tested,
            started: committed > 0,
            stopping: false,
            finished: false,
            non_finite: None,
            last_quotas: None,
            actions: Vec::new(),
            shape,
        };
        // What this epoch has used before the stop is used.
        let per_epoch = core.shape.schedule.steps_per_epoch() as u64;
        for step in committed - committed % per_epoch + 1..=committed {
            core.ledger.commit(&core.deck.ids(step));
        }
        core
    }

    /// Takes an event that happened at `now` (on any steady clock) and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        if !self.finished {
            self.dispatch(now, event);
        }
        std::mem::take(&mut self.actions)
    }

    fn dispatch(&mut self, now: Duration, event: Event) {
        match event {
            Event::Joined { session, name, device, threads } => {
                self.members.0.insert(session, Member::new(name, device, threads));
                if self.flight.is_none() {
                    self.send_states();
                }
            }
            Event::Loaded { session, step, digest } => self.loaded(now, session, step, digest),
            Event::Header { from, node, digest, samples } => self.header(now, from, node, digest, samples),
            Event::Chunk { from, node, index, fault } => self.chunk(now, from, node, index, fault),
            Event::Trailer { from, node, receipts, computed } => {
                self.trailer(now, from, node, receipts, computed);
            }
            Event::NonFinite { from, node, tensor } => self.non_finite(now, from, node, tensor),
            Event::Applied { digest } => self.applied(now, digest),
            Event::Diverged => {
                let step = self.committed + 1;
                self.diverged(step, "the summed gradient".into());
            }
            Event::Committed { session, step, digest, .. } => self.confirmed(now, session, step, digest),
            Event::Answered { session, step, leaf } => self.answered(now, session, step, leaf),
            Event::Lost { session, reason, polite } => self.lost(now, session, reason, polite),
            Event::Wake | Event::Stop => {
                self.stopping |= matches!(event, Event::Stop);
                if self.flight.is_none() {
                    self.boundary(now);
                }
            }
        }
    }

    // ---- What the shell and its views may look at ----

    /// The run's shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Who is in the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The accounting of samples.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Training samples committed in the whole run.
    #[must_use]
    pub fn samples_committed(&self) -> u64 {
        self.samples_before + self.ledger.committed()
    }

    /// The last committed step and its digest.
    #[must_use]
    pub fn committed(&self) -> (u64, Digest) {
        (self.committed, self.digest)
    }

    /// The step in flight, if there is one.
    #[must_use]
    pub fn flight(&self) -> Option<&StepInFlight> {
        self.flight.as_ref()
    }

    /// What the run is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.finished {
            Phase::Finished
        } else if self.test.is_some() {
            Phase::Testing
        } else if self.flight.is_some() {
            Phase::Training
        } else {
            Phase::Waiting
        }
    }

    // ---- Membership ----

    /// Sends the committed state to everyone who waits for one. Only between steps.
    fn send_states(&mut self) {
        for (&session, member) in &mut self.members.0 {
            if member.state == State::Joining {
                member.state = State::Loading;
                self.actions.push(Action::SendState { session });
            }
        }
    }

    fn loaded(&mut self, now: Duration, session: Session, step: u64, digest: Digest) {
        self.confirmed(now, session, step, digest);
    }

    /// A replica says that it is at `step` with `digest`.
    fn confirmed(&mut self, now: Duration, session: Session, step: u64, digest: Digest) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        if member.state == State::Joining
            || step > self.committed
            || member.confirmed.is_some_and(|c| step <= c)
        {
            return self.evict(now, session, format!("it confirmed step {step} out of turn"), false);
        }
        let recent = self.recent.iter().find(|(of, _)| *of == step).map(|(_, digest)| *digest);
        match recent {
            Some(wanted) if wanted == digest => {}
            Some(wanted) => {
                let reason = format!("its replica drifted: digest {digest} at step {step}, not {wanted}");
                return self.evict(now, session, reason, true);
            }
            None => return self.evict(now, session, format!("it lags at step {step}"), false),
        }
        member.confirmed = Some(step);
        if member.state == State::Loading && step + 1 >= self.committed {
            member.state = State::Ready;
            self.actions.push(Action::Note(Note::Ready { session }));
            if self.flight.is_none() {
                self.boundary(now);
            } else {
                self.deal_test_leaves();
            }
        }
    }

    fn evict(&mut self, now: Duration, session: Session, reason: String, drifted: bool) {
        if self.members.0.contains_key(&session) {
            self.actions.push(Action::Evict { session, reason: reason.clone(), drifted });
            self.lost(now, session, reason, false);
        }
    }

    fn lost(&mut self, now: Duration, session: Session, reason: String, polite: bool) {
        let Some(member) = self.members.0.remove(&session) else { return };
        self.actions.push(Action::Note(Note::Lost { session, name: member.name, reason, polite }));
        if let Some(test) = &mut self.test {
            test.give_back(member.testing);
            self.deal_test_leaves();
        }
        let Some(flight) = &self.flight else { return };
        if flight.closing {
            return;
        }
        if self.members.ready().is_empty() {
            // Nobody is left to finish the step. Whoever comes next gets the committed
            // state, so the attempt has to start from nothing.
            self.abort("no worker is left");
            return self.boundary(now);
        }
        let open: Vec<Node> = member.open.into_iter().collect();
        self.take_over(now, &open);
    }

    /// Deals nodes that a lost worker has not closed to the survivors (**LIVE-1**).
    fn take_over(&mut self, now: Duration, nodes: &[Node]) {
        let Some(flight) = &self.flight else { return };
        if nodes.is_empty() {
            return;
        }
        let ready = self.members.ready();
        let mean_leaf = flight.samples as f64 / f64::from(self.shape.tree.shards());
        let elapsed = now.saturating_sub(flight.started).as_secs_f64();
        let mut loads: Vec<Load> = ready
            .iter()
            .map(|session| {
                let per_leaf = self.members.per_sample(*session) * mean_leaf;
                let member = &self.members.0[session];
                let todo = if member.open.is_empty() { 0.0 } else { f64::from(member.leaves) * per_leaf };
                Load { busy: (todo - elapsed).max(0.0), per_leaf }
            })
            .collect();
        let (step, attempt) = (flight.step, flight.attempt);
        let dealt = flight.deal(nodes, &mut loads);
        let leaves = nodes.iter().map(|n| self.shape.tree.leaves(*n).len() as u32).sum();
        let workers = dealt.iter().filter(|nodes| !nodes.is_empty()).count();
        self.actions.push(Action::Note(Note::TakenOver { step, leaves, workers }));
        for (session, nodes) in ready.into_iter().zip(dealt) {
            self.plan(session, step, attempt, nodes);
        }
    }

    // ---- A step ----

    /// Gives a worker nodes, and before them the samples it has not got yet.
    fn plan(&mut self, session: Session, step: u64, attempt: u32, nodes: Vec<Node>) {
        let Some(flight) = &self.flight else { return };
        let samples = flight.samples;
        if nodes.is_empty() {
            return;
        }
        for &node in &nodes {
            self.deal(session, step, node);
        }
        if let Some(member) = self.members.0.get_mut(&session) {
            member.open.extend(nodes.iter().copied());
            member.leaves += nodes.iter().map(|n| self.shape.tree.leaves(*n).len() as u32).sum::<u32>();
        }
        self.actions.push(Action::Plan { session, step, attempt, samples, nodes });
    }

    /// Sends the samples of a node's leaves that the worker has not been sent.
    fn deal(&mut self, session: Session, step: u64, node: Node) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        for leaf in self.shape.tree.leaves(node) {
            let ids = self.deck.leaf_ids(self.shape.tree, step, leaf);
            if !ids.is_empty() && member.dealt.insert((step, leaf)) {
                self.actions.push(Action::SendLeaf { session, step, leaf, ids });
            }
        }
    }

    /// The quotas of the next step: the last ones while they serve within a tenth, so that
    /// noise in the measurements moves nothing.
    fn quotas(&mut self, ready: &[Session], loads: &[Load]) -> Vec<u32> {
        let best = assign::quotas(self.shape.tree.shards(), loads);
        if let Some((who, quotas)) = &self.last_quotas
            && who == ready
            && assign::makespan(quotas, loads) <= 1.1 * assign::makespan(&best, loads)
        {
            return quotas.clone();
        }
        self.last_quotas = Some((ready.to_vec(), best.clone()));
        best
    }

    fn start_step(&mut self, now: Duration) {
        let mut ready = self.members.ready();
        let wanted = if self.started { 1 } else { self.shape.workers };
        if ready.len() < wanted.max(1) {
            return;
        }
        if ready.len() > 1 {
            // Others compute what was NaN, to tell a broken worker from a broken model.
            ready.retain(|session| Some(*session) != self.non_finite);
        }
        self.started = true;
        let step = self.committed + 1;
        self.attempt += 1;
        let attempt = self.attempt;
        let samples = self.deck.batch_len(step);
        let tree = self.shape.tree;
        let mean_leaf = samples as f64 / f64::from(tree.shards());
        let load =
            |session: &Session| Load { busy: 0.0, per_leaf: self.members.per_sample(*session) * mean_leaf };
        let loads: Vec<Load> = ready.iter().map(load).collect();
        let quotas = self.quotas(&ready, &loads);
        let nodes = assign::runs(tree, 0..tree.shards(), &quotas);
        self.flight = Some(StepInFlight::new(tree, self.shape.chunks, step, attempt, samples, now));
        let learning_rate = self.shape.recipe.rate(step, self.shape.steps());
        self.actions.push(Action::Begin { step, attempt, learning_rate });
        for member in self.members.0.values_mut() {
            member.open.clear();
            member.leaves = 0;
            member.computed = 0.0;
            member.dealt.retain(|&(dealt, _)| dealt >= step);
        }
        let plans: Vec<Vec<Node>> = nodes
            .iter()
            .map(|n| n.iter().copied().filter(|n| !tree.is_empty(*n, samples)).collect())
            .collect();
        for (session, nodes) in ready.iter().zip(plans) {
            self.plan(*session, step, attempt, nodes);
        }
        // The next step's samples travel while this one is computed.
        if step < self.shape.steps() {
            for (session, nodes) in ready.drain(..).zip(nodes) {
                for node in nodes {
                    self.deal(session, step + 1, node);
                }
            }
        }
    }

    /// The member and the flight, if the message belongs to the attempt in flight. One
    /// that belongs to an earlier attempt is late, and no fault.
    fn current(&mut self, from: Origin) -> Option<(&mut Member, &mut StepInFlight)> {
        let flight = self.flight.as_mut()?;
        let member = self.members.0.get_mut(&from.session)?;
        ((from.step, from.attempt) == (flight.step, flight.attempt) && !flight.closing)
            .then_some((member, flight))
    }

    fn header(&mut self, now: Duration, from: Origin, node: Node, digest: Digest, samples: u64) {
        let (tree, wanted) = (self.shape.tree, self.digest);
        let Some((member, flight)) = self.current(from) else { return };
        let (step, session) = (flight.step, from.session);
        if !tree.contains(node) || !member.open.contains(&node) || !flight.opened.insert((session, node)) {
            return self.evict(now, session, format!("it opened {node}, which it was not given"), false);
        }
        if digest != wanted {
            let reason = format!("it computed with digest {digest}, not {wanted}");
            return self.evict(now, session, reason, true);
        }
        if samples != self.deck.node_digest(tree, step, node) {
            self.evict(now, session, format!("it computed {node} on other samples than it was given"), false);
        }
    }

    fn chunk(&mut self, now: Duration, from: Origin, node: Node, index: u32, fault: Option<String>) {
        let chunks = self.shape.chunks;
        let Some((_, flight)) = self.current(from) else { return };
        let open =
            flight.opened.contains(&(from.session, node)) && !flight.closed.contains(&(from.session, node));
        let window = flight.reduction.emitted() as usize + tally_proto::WINDOW;
        let fault = if !open {
            Some(format!("it sent a chunk of {node}, which is not open"))
        } else if index >= chunks {
            Some(format!("it sent chunk {index} of {chunks}"))
        } else if index as usize >= window {
            Some(format!("it sent chunk {index} of {node} without credit for it"))
        } else {
            fault
        };
        if let Some(fault) = fault {
            return self.violated(now, from.session, fault);
        }
        let Verdict::Take(due) = flight.reduction.contribute(node, index) else { return };
        if flight.reduction.is_complete() {
            flight.reduced = Some(now);
        }
        self.actions.push(Action::Take { node, index });
        self.actions.extend(due.into_iter().map(Action::Reduce));
        self.close_if_complete();
    }

    fn trailer(&mut self, now: Duration, from: Origin, node: Node, receipts: Vec<Receipt>, computed: f64) {
        let Some((member, flight)) = self.current(from) else { return };
        let key = (from.session, node);
        let fault = if !flight.opened.contains(&key) || !flight.closed.insert(key) {
            Some(format!("it closed {node}, which is not open"))
        } else if !(0..flight.reduction.chunks()).all(|chunk| flight.reduction.is_covered(node, chunk)) {
            Some(format!("it closed {node} before all of its chunks had come"))
        } else {
            flight.check(node, &receipts).err()
        };
        if let Some(fault) = fault {
            return self.violated(now, from.session, fault);
        }
        let samples: u32 = receipts.iter().map(|r| r.samples).sum();
        member.open.remove(&node);
        member.computed += computed.max(0.0);
        member.measure(computed, samples as usize);
        for receipt in receipts {
            flight.receipts.entry(receipt.leaf).or_insert(receipt);
        }
        self.close_if_complete();
    }

    fn close_if_complete(&mut self) {
        let Some(flight) = &mut self.flight else { return };
        if flight.closing || !flight.is_complete() {
            return;
        }
        flight.closing = true;
        let (step, attempt) = (flight.step, flight.attempt);
        let learning_rate = self.shape.recipe.rate(step, self.shape.steps());
        self.actions.push(Action::Close { step, attempt, learning_rate });
    }

    fn applied(&mut self, now: Duration, digest: Digest) {
        let Some(flight) = self.flight.take() else { return };
        let step = flight.step;
        let loss = flight.loss();
        let seconds = now.saturating_sub(flight.started).as_secs_f64();
        let workers: Vec<&Member> = self.members.0.values().filter(|m| m.leaves > 0).collect();
        let slowest = workers.iter().map(|m| m.computed).fold(0.0, f64::max);
        let waiting = workers.iter().map(|m| slowest - m.computed).sum::<f64>() / workers.len().max(1) as f64;
        let reduced = flight.reduced.unwrap_or(now).saturating_sub(flight.started).as_secs_f64();
        let epoch = self.shape.schedule.position(step).0;
        self.actions.push(Action::Commit(Box::new(Committed {
            step,
            epoch,
            attempt: flight.attempt,
            loss,
            samples: flight.samples,
            workers: workers.len(),
            seconds,
            compute_seconds: slowest,
            transfer_seconds: (reduced - slowest).max(0.0),
            waiting_seconds: waiting,
            learning_rate: self.shape.recipe.rate(step, self.shape.steps()),
            digest,
        })));
        // What the receipts say was used, leaf by leaf.
        for &leaf in flight.receipts.keys() {
            let ids = self.deck.leaf_ids(self.shape.tree, step, leaf);
            self.ledger.commit(&ids);
        }
        for (session, node) in &flight.closed {
            let samples: usize =
                self.shape.tree.leaves(*node).map(|l| self.shape.tree.samples(l, flight.samples).len()).sum();
            if let Some(member) = self.members.0.get_mut(session) {
                member.samples += samples as u64;
            }
        }
        self.committed = step;
        self.digest = digest;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((step, digest));
        if let Some(session) = self.non_finite.take()
            && self.members.0.get(&session).is_some_and(|member| member.leaves == 0)
        {
            self.evict(now, session, "it found NaN in a gradient where others found none".into(), false);
        }
        if step.is_multiple_of(self.shape.schedule.steps_per_epoch() as u64) {
            self.ledger.end_epoch();
        }
        self.boundary(now);
    }

    /// Between two steps: states for newcomers, checkpoints, test passes, the next step.
    fn boundary(&mut self, now: Duration) {
        if self.finished {
            return;
        }
        self.send_states();
        if self.test.is_some() && !self.stopping {
            self.deal_test_leaves();
            return;
        }
        let per_epoch = self.shape.schedule.steps_per_epoch() as u64;
        let epochs_done = (self.committed / per_epoch) as u32;
        let due = self.shape.checkpoint_every.is_some_and(|every| self.committed.is_multiple_of(every));
        let at_end = self.committed.is_multiple_of(per_epoch);
        if self.committed > 0 && (due || at_end || self.stopping) {
            self.checkpoint();
        }
        if self.stopping {
            return self.finish(Outcome::Stopped);
        }
        if epochs_done > self.tested {
            self.test = Some(TestPass::new(test_pass::leaves(self.shape.test_samples)));
            self.actions.push(Action::TestBegin { step: self.committed, epoch: epochs_done });
            self.deal_test_leaves();
        } else if self.committed >= self.shape.steps() {
            self.finish(Outcome::Done);
        } else {
            self.start_step(now);
        }
    }

    fn checkpoint(&mut self) {
        if self.checkpointed != Some(self.committed) {
            self.checkpointed = Some(self.committed);
            self.actions.push(Action::Checkpoint { step: self.committed });
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.finished = true;
        self.flight = None;
        self.actions.push(Action::Finish(outcome));
    }

    // ---- What goes wrong in a step ----

    /// A worker broke the rules after a header that was right. What was reduced may rest
    /// on it, so the attempt is void.
    fn violated(&mut self, now: Duration, session: Session, fault: String) {
        self.abort(&fault);
        self.evict(now, session, fault, false);
        self.boundary(now);
    }

    fn abort(&mut self, reason: &str) {
        if let Some(flight) = self.flight.take() {
            let (step, attempt) = (flight.step, flight.attempt);
            self.actions.push(Action::Abort { step, attempt, reason: reason.into() });
        }
    }

    fn non_finite(&mut self, now: Duration, from: Origin, node: Node, tensor: String) {
        let Some((member, _)) = self.current(from) else { return };
        if !member.open.contains(&node) {
            return self.evict(
                now,
                from.session,
                format!("it reported on {node}, which it was not given"),
                false,
            );
        }
        let (session, reason) = (from.session, format!("the gradient of {tensor} is not finite"));
        let alone = self.members.ready().iter().all(|&ready| ready == session);
        if self.non_finite.is_some_and(|before| before != session || alone) {
            // Two workers have found it, or one, twice, that nobody can check.
            return self.diverged(from.step, tensor);
        }
        self.non_finite = Some(session);
        self.abort(&reason);
        self.boundary(now);
    }

    fn diverged(&mut self, step: u64, tensor: String) {
        self.abort("the run has diverged");
        if self.committed > 0 {
            self.checkpoint();
        }
        self.finish(Outcome::Diverged { step, tensor });
    }

    // ---- The test pass ----

    fn deal_test_leaves(&mut self) {
        let Some(test) = &mut self.test else { return };
        loop {
            let free = self.members.0.iter_mut().filter(|(_, m)| m.state == State::Ready);
            let Some((&session, member)) = free.min_by_key(|(_, m)| m.testing.len()) else { return };
            if member.testing.len() >= OUTSTANDING {
                return;
            }
            let Some(leaf) = test.take() else { return };
            member.testing.insert(leaf);
            self.actions.push(Action::SendTestLeaf { session, step: self.committed, leaf });
        }
    }

    fn answered(&mut self, now: Duration, session: Session, step: u64, leaf: u32) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        let Some(test) = &mut self.test else { return };
        if step != self.committed || !member.testing.remove(&leaf) || member.confirmed != Some(step) {
            let reason = format!("it answered leaf {leaf} of the test pass, which it was not given");
            return self.evict(now, session, reason, false);
        }
        test.answer(leaf);
        if !test.is_complete() {
            return self.deal_test_leaves();
        }
        self.test = None;
        self.tested = (self.committed / self.shape.schedule.steps_per_epoch() as u64) as u32;
        self.actions.push(Action::TestDone { step: self.committed, epoch: self.tested });
        self.boundary(now);
    }
}
