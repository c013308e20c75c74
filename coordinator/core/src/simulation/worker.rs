//! A worker of the simulation: it does what it is told, in the order of steps, unless the
//! schedule makes it faulty. Sums are texts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tally_numerics::CREDIT_WINDOW;
use tally_numerics::digest::{Digest, fnv1a};
use tally_numerics::schema::Sums;
use tally_numerics::sum::along_tree;
use tally_numerics::tree::{Node, Tree};

use super::super::cluster::Session;
use super::super::events::{AttemptId, Event, Receipt};
use super::super::sampler::EpochSampler;
use super::CHUNKS;

/// From the control stream.
#[derive(Clone, Debug)]
pub enum Control {
    Plan { step: u64, attempt: u32, samples: usize, nodes: Vec<Node>, audit: bool },
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
    Begin { step: u64, attempt: u32 },
    Reduced { step: u64, attempt: u32, index: u32, text: String },
}

#[derive(Debug)]
struct Second {
    step: u64,
    attempt: u32,
    chunks: BTreeMap<u32, String>,
}

/// One worker process, over all its sessions.
#[derive(Default)]
pub struct Worker {
    /// Its session, while it is connected.
    pub session: Option<Session>,
    /// What is on its way to it, and from it, on both streams.
    pub control: VecDeque<Control>,
    pub bulk: VecDeque<Bulk>,
    pub said: VecDeque<Event>,
    pub sent: VecDeque<Event>,
    /// From the gradient stream, waiting for its turn.
    inbox: VecDeque<Bulk>,
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
        *self = Self { held, drifted: self.drifted, faulty: self.faulty, ..Self::default() };
    }

    /// Takes a message from the control stream.
    pub fn hear(&mut self, message: Control) {
        let session = self.session.unwrap_or(0);
        match message {
            Control::Plan { step, attempt, samples, nodes, audit } => {
                self.plans.push_back((step, attempt, samples, nodes.into(), audit));
            }
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
        if let Bulk::Reduced { attempt, index, .. } = message
            && self.turn(attempt)
        {
            self.leaving.1.insert(index);
        }
        self.inbox.push_back(message);
    }

    /// The next part of a contribution that may leave; nodes do not wait for each other.
    pub fn send(&mut self) -> Option<Event> {
        let credits = self.leaving.1.len() + CREDIT_WINDOW;
        let summed = |e: &Event| matches!(e, Event::Chunk { index, .. } if self.leaving.1.contains(index));
        self.sent.retain(|event| !summed(event));
        let mut blocked = BTreeSet::new();
        let at = self.sent.iter().position(|event| match event {
            Event::Header { node, .. } | Event::Trailer { node, .. } => !blocked.contains(node),
            Event::Chunk { node, index, .. } => {
                let may = !blocked.contains(node) && (*index as usize) < credits;
                if !may {
                    blocked.insert(*node);
                }
                may
            }
            _ => true,
        });
        self.sent.remove(at?)
    }

    /// Whether the next message from the gradient stream has its turn.
    fn can_take(&self) -> bool {
        match (self.inbox.front(), self.committed) {
            (Some(Bulk::State { .. }), _) => true,
            (Some(Bulk::Begin { step, .. } | Bulk::Reduced { step, .. }), Some((at, _))) => *step <= at + 1,
            _ => false,
        }
    }

    fn take(&mut self) {
        let Some(message) = self.inbox.pop_front() else { return };
        let (at, void) = (self.committed.map(|c| c.0), self.void);
        let stale = |step: u64, attempt: u32| at != Some(step - 1) || (step == void.0 && attempt <= void.1);
        match message {
            Bulk::State { step, digest } => {
                self.second = None;
                self.drifted = false;
                self.loaded(step, digest);
            }
            Bulk::Begin { step, attempt } if !stale(step, attempt) => {
                self.second = Some(Second { step, attempt, chunks: BTreeMap::new() });
            }
            Bulk::Reduced { step, attempt, index, text } if !stale(step, attempt) => {
                if let Some(second) = self.second.as_mut().filter(|s| s.attempt == attempt) {
                    assert!(second.chunks.insert(index, text).is_none(), "SUM-1: a chunk is summed once");
                }
            }
            _ => {}
        }
    }

    /// Does one thing whose turn has come; false if there is none.
    pub fn advance(&mut self, sampler: &mut EpochSampler, tree: Tree) -> bool {
        if self.can_take() {
            self.take();
            return true;
        }
        let (Some((at, before)), Some(session)) = (self.committed, self.session) else { return false };
        if let Some(&(step, digest)) = self.commits.front() {
            if step <= at {
                self.commits.pop_front();
                return true;
            }
            let whole =
                |s: &mut Second| s.step == step && step == at + 1 && s.chunks.len() == CHUNKS as usize;
            if let Some(second) = self.second.take_if(whole) {
                self.commits.pop_front();
                let mut own = next_digest(before, &second.chunks);
                if std::mem::take(&mut self.corrupt) {
                    own = Digest(own.0 ^ 1);
                    self.drifted = true;
                }
                if !self.drifted {
                    assert_eq!(own, digest, "REP-1: a replica that was told everything agrees");
                }
                self.before = self.committed.replace((step, own));
                self.said.push_back(Event::Committed { session, step, digest: own, apply: 0.0, round: 0.0 });
                return true;
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
                    Some(node) => self.contribute(
                        sampler,
                        tree,
                        AttemptId { session, step, attempt },
                        samples,
                        node,
                        audit,
                    ),
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
        tree: Tree,
        from: AttemptId,
        samples: usize,
        node: Node,
        audit: bool,
    ) {
        let mut texts: Vec<String> =
            (0..CHUNKS).map(|chunk| sum_of(tree, from.step, samples, node, chunk).unwrap()).collect();
        if self.drifted {
            texts.iter_mut().for_each(|text| text.push('~'));
        }
        if std::mem::take(&mut self.flip) {
            texts[1].push('!');
        }
        if audit {
            let all = (0..CHUNKS).zip(&texts).map(|(index, text)| digest_of(index, text));
            let digest = all.fold(Digest::default(), Digest::and);
            return self.said.push_back(Event::Audited { from, node, digest });
        }
        self.turn(from.attempt);
        let digest = self.committed.expect("work is given to replicas").1;
        let samples_digest = sampler.node_digest(tree, from.step, node);
        self.sent.push_back(Event::Header { from, node, digest, samples: samples_digest });
        // The text travels in the place of the fault; the world takes it out.
        for (index, text) in (0..CHUNKS).zip(texts) {
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
