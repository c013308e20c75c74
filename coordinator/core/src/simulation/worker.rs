//! A worker of the simulation: it does what it is told, in the order of steps, unless the
//! schedule makes it faulty. Sums are texts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tally_numerics::digest::{Digest, fnv1a};
use tally_numerics::schema::Sums;
use tally_numerics::sum::along_tree;
use tally_numerics::tree::{Node, Tree};

use super::super::cluster::Session;
use super::super::events::{AttemptId, Event, Receipt};
use super::super::sampler::EpochSampler;
use super::Shape;
use super::peers::{Peer, PeerSide};
use tally_numerics::layout::Layout;

/// From the control stream.
#[derive(Clone, Debug)]
pub enum Control {
    Plan { step: u64, attempt: u32, samples: usize, nodes: Vec<Node>, audit: bool },
    Dial { peer: Session },
    Commit { step: u64, digest: Digest },
    Abort { step: u64, attempt: u32 },
    TestLeaf { step: u64, leaf: u32 },
    Upload { step: u64 },
    Keep { step: u64, digest: Digest },
}

/// From the gradient stream.
#[derive(Clone, Debug)]
pub enum Bulk {
    State { step: u64, digest: Digest },
    Begin { step: u64, attempt: u32, samples: usize, layout: Layout, digest: Digest },
    TakeBack { attempt: u32, chunks: Vec<u32> },
    Reduced { step: u64, attempt: u32, index: u32, text: String },
}

#[derive(Clone, Debug)]
struct Second {
    step: u64,
    attempt: u32,
    chunks: BTreeMap<u32, String>,
}

/// What a worker sends next.
pub enum Out {
    Coordinator(Event),
    Peer(Session, Peer),
}

/// One worker process, over all its sessions.
#[derive(Clone, Debug, Default)]
pub struct Worker {
    /// Its session, while it is connected.
    pub session: Option<Session>,
    /// What is on its way to it, and from it, on both streams.
    pub control: VecDeque<Control>,
    pub bulk: VecDeque<Bulk>,
    pub said: VecDeque<Event>,
    pub sent: VecDeque<Event>,
    /// What has left on the gradient stream. Links are other connections: what goes to owners may overtake it.
    pub up: VecDeque<Event>,
    /// From the gradient stream and from owners, waiting for its turn.
    inbox: VecDeque<Bulk>,
    /// What it does for others in a sharded attempt.
    pub side: PeerSide,
    /// Turns that it has waited for sums of a step that counts.
    pub patience: u32,
    /// The sums of the step that it applied last.
    pub last_sums: BTreeMap<u32, String>,
    /// Of the run it takes part in.
    pub shape: Shape,
    /// Added to the texts of its gradients: its device computes other bits.
    pub accent: &'static str,
    /// The attempt whose contributions leave, and its chunks that are summed: each is the
    /// credit for one more.
    leaving: (u32, BTreeSet<u32>),
    pub replica: bool,
    /// It does nothing for so many turns: frozen, or slow.
    pub asleep: u32,
    /// Its memory is bad: the next update comes out wrong.
    pub corrupt: bool,
    /// It has come out wrong.
    pub drifted: bool,
    /// It has broken a rule, or will: it may be sent away.
    pub faulty: bool,
    /// The next contribution comes out wrong.
    pub flip: bool,
    /// The next contribution is computed on other samples.
    pub other_samples: bool,
    pub committed: Option<(u64, Digest)>,
    before: Option<(u64, Digest)>,
    held: Vec<(u64, Digest)>,
    second: Option<Second>,
    void: (u64, u32),
    plans: VecDeque<(u64, u32, usize, VecDeque<Node>, bool)>,
    commits: VecDeque<(u64, Digest)>,
    tests: VecDeque<(u64, u32)>,
}

/// The digest after a step's sum was applied.
pub fn next_digest(before: Digest, root: &BTreeMap<u32, String>) -> Digest {
    let text = root.values().flat_map(|text| text.bytes());
    Digest(fnv1a(before.0.to_le_bytes().into_iter().chain(text)))
}

/// A node's sum of a step for a chunk, as the tree defines it.
pub fn sum_of(tree: Tree, step: u64, samples: usize, node: Node, chunk: u32) -> Option<String> {
    let leaf = |k: u32| (!tree.samples(k, samples).is_empty()).then(|| format!("{step}:{k}.{chunk}"));
    along_tree(tree.leaves(node).map(leaf), |l, r| format!("({l}+{r})"))
}

/// The digest of a contributed chunk.
pub fn digest_of(index: u32, text: &str) -> Digest {
    Digest(fnv1a(index.to_le_bytes().into_iter().chain(text.bytes())))
}

impl Worker {
    /// Whether it has been sent this chunk of an attempt's sum.
    pub fn has_sum(&self, of: u32, chunk: u32) -> bool {
        let waits =
            |m: &Bulk| matches!(m, Bulk::Reduced { index, attempt, .. } if (*index, *attempt) == (chunk, of));
        let taken = |s: &Second| s.attempt == of && s.chunks.contains_key(&chunk);
        self.second.as_ref().is_some_and(taken) || self.inbox.iter().any(waits)
    }

    /// What it offers when it comes back.
    pub fn offers(&self) -> Vec<(u64, Digest)> {
        self.held.clone()
    }

    /// Its connection is gone; it keeps what it holds.
    pub fn disconnect(&mut self) {
        if let Some(committed) = self.committed {
            let before = self.before.filter(|_| self.second.as_ref().is_none_or(|s| s.chunks.is_empty()));
            self.held = std::iter::once(committed).chain(before).collect();
        }
        let held = std::mem::take(&mut self.held);
        let (drifted, faulty, accent, shape) = (self.drifted, self.faulty, self.accent, self.shape);
        *self = Self { held, drifted, faulty, accent, shape, ..Self::default() };
    }

    /// Takes a message from the control stream.
    pub fn hear(&mut self, message: Control) {
        let session = self.session.unwrap_or(0);
        match message {
            Control::Plan { step, attempt, samples, nodes, audit } => {
                self.plans.push_back((step, attempt, samples, nodes.into(), audit));
            }
            Control::Dial { .. } => unreachable!("the world dials"),
            Control::Commit { step, digest } => self.commits.push_back((step, digest)),
            Control::Abort { step, attempt } => {
                self.void = (step, attempt);
                self.turn(attempt + 1);
                self.second.take_if(|s| s.step == step && s.attempt <= attempt);
            }
            Control::TestLeaf { step, leaf } => self.tests.push_back((step, leaf)),
            Control::Upload { step } => {
                let held = self.held.iter().find(|(held, _)| *held == step);
                let digest = held.expect("only what was offered is asked for").1;
                self.said.push_back(Event::Uploaded { session, step, digest });
            }
            Control::Keep { step, digest } => {
                assert_eq!(
                    self.held.first(),
                    Some(&(step, digest)),
                    "RESUME-1: only the newest state is kept"
                );
                self.loaded(step, digest);
            }
        }
    }

    /// Whether it was asked for a state that has not arrived.
    pub fn owes_a_state(&self) -> bool {
        self.control.iter().any(|message| matches!(message, Control::Upload { .. }))
            || self.said.iter().any(|event| matches!(event, Event::Uploaded { .. }))
    }

    fn loaded(&mut self, step: u64, digest: Digest) {
        self.held.clear();
        self.before = None;
        self.committed = Some((step, digest));
        let session = self.session.unwrap_or(0);
        self.said.push_back(Event::Loaded { session, step, digest });
    }

    fn turn(&mut self, attempt: u32) -> bool {
        if attempt > self.leaving.0 {
            self.leaving = (attempt, BTreeSet::new());
            self.sent.retain(|event| origin(event).is_some_and(|from| from.attempt >= attempt));
        }
        attempt == self.leaving.0
    }

    /// Takes the next message of the gradient stream from the network.
    pub fn receive(&mut self) {
        let Some(message) = self.bulk.pop_front() else { return };
        match &message {
            Bulk::Reduced { attempt, index, .. } if self.turn(*attempt) => {
                self.leaving.1.insert(*index);
            }
            Bulk::Begin { step, attempt, samples, layout, digest } => {
                self.turn(*attempt);
                let me = (self.session.unwrap_or(0), self.shape);
                self.side.begin(me, (*step, *attempt), *samples, layout.clone(), *digest);
            }
            Bulk::TakeBack { attempt, chunks } => return self.side.take_back(*attempt, chunks),
            _ => {}
        }
        self.inbox.push_back(message);
    }

    /// Takes a message from another worker. False if it has to wait: the coordinator has not announced its attempt yet.
    pub fn receive_from_peer(&mut self, message: &Peer) -> bool {
        if message.attempt() > self.side.attempt {
            return false;
        }
        match message.clone() {
            Peer::Sum { step, attempt, index, text } => {
                self.side.sum(self.session.unwrap_or(0), attempt, index, &text);
                self.inbox.push_back(Bulk::Reduced { step, attempt, index, text });
            }
            partial @ Peer::Partial { .. } => self.add(partial),
        }
        true
    }

    fn add(&mut self, partial: Peer) {
        let (step, attempt) = (self.side.step, self.side.attempt);
        if let Some((index, text)) = self.side.partial(self.session.unwrap_or(0), partial) {
            self.inbox.push_back(Bulk::Reduced { step, attempt, index, text });
        }
    }

    /// The next message that may leave; `first` chooses between the kinds.
    pub fn send(&mut self, first: u32) -> Option<Out> {
        for kind in first..first + 4 {
            let next = match kind % 4 {
                0 => self.side.roots.pop_front().map(Out::Coordinator),
                1 => self.side.out.pop_front().map(|(to, message)| Out::Peer(to, message)),
                2 => self.send_returned().map(Out::Coordinator),
                _ => self.send_contribution(),
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Whether credits allow a chunk to go to the coordinator.
    fn has_credit(&self, index: u32) -> bool {
        let whole = self.side.own.iter().filter(|own| self.leaving.1.contains(own)).count();
        self.side
            .own
            .iter()
            .position(|own| *own == index)
            .is_some_and(|place| place < whole + self.shape.window)
    }

    fn send_returned(&mut self) -> Option<Event> {
        let summed = |e: &Event| matches!(e, Event::Chunk { index, .. } if self.leaving.1.contains(index));
        self.side.returned.retain(|event| !summed(event));
        let may = |e: &Event| matches!(e, Event::Chunk { index, .. } if self.has_credit(*index));
        let at = self.side.returned.iter().position(may)?;
        self.side.returned.remove(at)
    }

    /// The next part of a contribution; nodes do not wait for each other.
    fn send_contribution(&mut self) -> Option<Out> {
        let summed = |e: &Event| matches!(e, Event::Chunk { index, .. } if self.leaving.1.contains(index));
        self.sent.retain(|event| !summed(event));
        loop {
            let sharded = self.side.layout.is_sharded();
            let mut blocked = BTreeSet::new();
            let at = self.sent.iter().position(|event| match event {
                Event::Header { node, .. } | Event::Trailer { node, .. } => !blocked.contains(node),
                Event::Chunk { from, node, index, .. } => {
                    // Before the attempt is announced nobody knows whose the chunk is.
                    let known = from.attempt <= self.side.attempt;
                    let may = !blocked.contains(node) && known && (sharded || self.has_credit(*index));
                    if !may {
                        blocked.insert(*node);
                    }
                    may
                }
                _ => true,
            });
            let event = self.sent.remove(at?)?;
            let Event::Chunk { from, node, index, fault: text, .. } = &event else {
                return Some(Out::Coordinator(event));
            };
            let me = self.session.unwrap_or(0);
            let Some(to) = self.side.layout.destination(me, *index) else {
                return Some(Out::Coordinator(event));
            };
            if self.side.own.contains(index) {
                self.side.returned.push_back(event);
                continue;
            }
            let digest = self.committed.map_or(Digest::default(), |c| c.1);
            let text = text.clone().unwrap_or_default();
            let partial = Peer::Partial { from: *from, node: *node, index: *index, text, digest };
            self.side.kept.insert((*node, *index), event);
            if to == me {
                self.add(partial);
            } else {
                return Some(Out::Peer(to, partial));
            }
        }
    }

    /// The first message whose turn has come: an owner's sum may come after the next attempt's beginning.
    fn eligible(&self) -> Option<usize> {
        self.inbox.iter().position(|message| match (message, self.committed) {
            (Bulk::State { .. }, _) => true,
            (Bulk::Begin { step, .. } | Bulk::Reduced { step, .. }, Some((at, _))) => *step <= at + 1,
            _ => false,
        })
    }

    fn take(&mut self, at: usize) {
        let Some(message) = self.inbox.remove(at) else { return };
        let (at, void) = (self.committed.map(|c| c.0), self.void);
        let stale = |step: u64, attempt: u32| at != Some(step - 1) || (step == void.0 && attempt <= void.1);
        match message {
            // It went on by itself before the state that it was to have came.
            Bulk::State { step, .. } if at.is_some_and(|at| step <= at) && !self.drifted => {}
            Bulk::State { step, digest } => {
                self.second = None;
                self.drifted = false;
                self.loaded(step, digest);
            }
            Bulk::Begin { step, attempt, .. } if !stale(step, attempt) => {
                self.second = Some(Second { step, attempt, chunks: BTreeMap::new() });
            }
            Bulk::Reduced { step, attempt, index, text } if !stale(step, attempt) => {
                if let Some(second) = self.second.as_mut().filter(|s| s.attempt == attempt) {
                    let before = second.chunks.insert(index, text.clone());
                    let is_wrong = |text: &String| text.contains(['?', '!']);
                    let told_wrong = is_wrong(&text) || before.as_ref().is_some_and(is_wrong);
                    if let Some(before) = before.filter(|_| !told_wrong) {
                        assert_eq!(before, text, "SUM-1: all versions of a sum are equal");
                    }
                }
            }
            _ => {}
        }
    }

    /// The question for sums of a step that counts and that have not come.
    pub fn need(&self) -> Option<Event> {
        let (&(step, _), (at, _)) = (self.commits.front()?, self.committed?);
        let second = self.second.as_ref().filter(|s| s.step == step && step == at + 1)?;
        let missing: Vec<u32> =
            (0..self.shape.chunks).filter(|index| !second.chunks.contains_key(index)).collect();
        let from = AttemptId { session: self.session?, step, attempt: second.attempt };
        (!missing.is_empty()).then_some(Event::Need { from, chunks: missing })
    }

    /// Does one thing whose turn has come; false if there is none.
    pub fn advance(&mut self, sampler: &mut EpochSampler) -> bool {
        if let Some(at) = self.eligible() {
            self.take(at);
            return true;
        }
        let (Some((at, before)), Some(session)) = (self.committed, self.session) else { return false };
        if let Some(&(step, digest)) = self.commits.front() {
            if step <= at {
                self.commits.pop_front();
                return true;
            }
            let whole = |s: &mut Second| {
                s.step == step && step == at + 1 && s.chunks.len() == self.shape.chunks as usize
            };
            if let Some(second) = self.second.take_if(whole) {
                self.commits.pop_front();
                self.patience = 0;
                let mut own = next_digest(before, &second.chunks);
                if std::mem::take(&mut self.corrupt) {
                    own = Digest(own.0 ^ 1);
                    self.drifted = true;
                }
                let told_wrong = second.chunks.values().any(|text| text.contains('?'));
                if !self.drifted && !told_wrong {
                    assert_eq!(own, digest, "REP-1: a replica that was told everything agrees");
                }
                self.last_sums = second.chunks;
                // Whoever was told wrong sums sees it, and stays where it is.
                if !told_wrong {
                    self.before = self.committed.replace((step, own));
                }
                self.said.push_back(Event::Committed {
                    session,
                    step,
                    digest: own,
                    apply: 0.0,
                    round: 0.0,
                    differing: None,
                });
                return true;
            }
            self.patience += 1;
            if self.patience.is_multiple_of(10) {
                let need = self.need();
                self.said.extend(need);
            }
        }
        if let Some((step, attempt, samples, nodes, audit)) = self.plans.front_mut() {
            let (step, attempt, samples, audit) = (*step, *attempt, *samples, *audit);
            let void = step == self.void.0 && attempt <= self.void.1;
            if step <= at || void {
                self.plans.pop_front();
                return true;
            }
            if step == at + 1 {
                match nodes.pop_front() {
                    Some(node) => {
                        self.contribute(sampler, AttemptId { session, step, attempt }, samples, node, audit)
                    }
                    None => drop(self.plans.pop_front()),
                }
                return true;
            }
        }
        if let Some(&(step, leaf)) = self.tests.front()
            && step <= at
        {
            self.tests.pop_front();
            if step == at {
                self.said.push_back(Event::Answered { session, step, leaf });
            }
            return true;
        }
        false
    }

    fn contribute(
        &mut self,
        sampler: &mut EpochSampler,
        from: AttemptId,
        samples: usize,
        node: Node,
        audit: bool,
    ) {
        let tree = self.shape.tree;
        let mut texts: Vec<String> = (0..self.shape.chunks)
            .map(|chunk| sum_of(tree, from.step, samples, node, chunk).unwrap())
            .collect();
        if !self.accent.is_empty() {
            texts.iter_mut().for_each(|text| *text = text.replace(':', self.accent));
        }
        if self.drifted {
            texts.iter_mut().for_each(|text| text.push('~'));
        }
        if std::mem::take(&mut self.flip) {
            texts[1].push('!');
        }
        if audit {
            let all = (0..self.shape.chunks).zip(&texts).map(|(index, text)| digest_of(index, text));
            let digest = all.fold(Digest::default(), Digest::and);
            return self.said.push_back(Event::Audited { from, node, digest });
        }
        if !self.turn(from.attempt) {
            // Nobody wants an older attempt's any more.
            return;
        }
        let digest = self.committed.expect("work is given to replicas").1;
        let mut samples_digest = sampler.node_digest(tree, from.step, node);
        if std::mem::take(&mut self.other_samples) {
            samples_digest ^= 1;
            texts.iter_mut().for_each(|text| text.push('!'));
        }
        self.sent.push_back(Event::Header { from, node, digest, samples: samples_digest });
        // The text travels in the place of the fault; the world takes it out.
        for (index, text) in (0..self.shape.chunks).zip(texts) {
            self.sent.push_back(Event::Chunk { from, node, index, digest: None, fault: Some(text) });
        }
        let receipts = tree.leaves(node).filter_map(|leaf| {
            let samples = tree.samples(leaf, samples).len() as u32;
            let losses = Sums(vec![f64::from(leaf), 1.0, 0.5]);
            (samples > 0).then_some(Receipt { leaf, samples, losses })
        });
        self.sent.push_back(Event::Trailer { from, node, receipts: receipts.collect(), computed: 0.002 });
    }
}

fn origin(event: &Event) -> Option<AttemptId> {
    match event {
        Event::Header { from, .. } | Event::Chunk { from, .. } | Event::Trailer { from, .. } => Some(*from),
        _ => None,
    }
}
