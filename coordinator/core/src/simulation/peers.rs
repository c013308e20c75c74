//! What a simulated worker has to do with others in a sharded attempt: partial sums to owners, sums from them.

use std::collections::{BTreeMap, VecDeque};

use tally_numerics::digest::Digest;
use tally_numerics::tree::Node;

use super::super::cluster::Session;
use super::super::events::{AttemptId, Event};
use super::Shape;
use super::text_sums::TextSums;
use tally_numerics::layout::Layout;
use tally_numerics::reduction::{Contribution, Reduction};

/// A message from one worker to another.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A chunk of a node, to its combiner or its owner.
    Partial { from: AttemptId, node: Node, index: u32, text: String, digest: Digest },
    /// A sum, from its owner or a combiner.
    Sum { step: u64, attempt: u32, index: u32, text: String },
}

impl Peer {
    pub fn attempt(&self) -> u32 {
        match self {
            Self::Partial { from, .. } => from.attempt,
            Self::Sum { attempt, .. } => *attempt,
        }
    }
}

/// The attempt that the coordinator announced last, and what this worker does in it for others.
#[derive(Clone, Debug, Default)]
pub struct PeerSide {
    pub step: u64,
    pub attempt: u32,
    pub layout: Layout,
    /// The digest of the replicas that contribute.
    digest: Digest,
    /// The chunks that go to the coordinator, in the order of their credits.
    pub own: Vec<u32>,
    /// What was sent to owners; kept until the next attempt.
    pub kept: BTreeMap<(Node, u32), Event>,
    /// What goes to the coordinator instead, as credits allow.
    pub returned: VecDeque<Event>,
    /// Sums for the coordinator.
    pub roots: VecDeque<Event>,
    /// Sums for others.
    pub out: VecDeque<(Session, Peer)>,
    /// What it adds up of the chunks that it owns or combines.
    sums: BTreeMap<u32, (Reduction, TextSums)>,
    /// The next sum that goes to a single worker is wrong.
    pub lies: bool,
    /// The next sum of another owner that it passes on is wrong.
    pub misquotes: bool,
    /// The next sum that goes to the coordinator is NaN.
    pub nan: bool,
    /// It adds up wrongly, as with bad memory, and sends everybody the same.
    pub miscounts: bool,
}

impl PeerSide {
    /// An attempt is announced; a second time to a worker that was sent a state.
    pub fn begin(
        &mut self,
        (me, shape): (Session, Shape),
        (step, attempt): (u64, u32),
        samples: usize,
        layout: Layout,
        digest: Digest,
    ) {
        if attempt <= self.attempt {
            return;
        }
        let own = if layout.is_sharded() { Vec::new() } else { (0..shape.chunks).collect() };
        let out = std::mem::take(&mut self.out);
        let sum = |chunk: u32| {
            let outputs = layout.outputs(me, chunk)?.to_vec();
            Some((chunk, (Reduction::of(shape.tree, 1, samples, outputs), TextSums::default())))
        };
        let sums = (0..shape.chunks).filter_map(sum).collect();
        let (lies, misquotes, nan, miscounts) = (self.lies, self.misquotes, self.nan, self.miscounts);
        let base = Self { lies, misquotes, nan, miscounts, ..Self::default() };
        *self = Self { step, attempt, layout, digest, own, out, sums, ..base };
    }

    /// The coordinator adds these chunks up itself.
    pub fn take_back(&mut self, attempt: u32, chunks: &[u32]) {
        if attempt == self.attempt {
            // A worker that was sent a state is told of all of them again.
            let chunks: Vec<u32> = chunks.iter().copied().filter(|chunk| !self.own.contains(chunk)).collect();
            self.own.extend(&chunks);
            let kept = self.kept.iter().filter(|((_, index), _)| chunks.contains(index));
            self.returned.extend(kept.map(|(_, event)| event.clone()));
        }
    }

    /// A partial sum has come; returns the sum if it is whole.
    pub fn partial(&mut self, me: Session, message: Peer) -> Option<(u32, String)> {
        let Peer::Partial { from, node, index, text, digest } = message else { return None };
        if from.attempt != self.attempt || digest != self.digest {
            return None;
        }
        assert!(self.layout.may_send(from.session, me, index), "a chunk went to the wrong worker");
        let (reduction, texts) = self.sums.get_mut(&index)?;
        let Contribution::Take(due) = reduction.contribute(node, 0) else { return None };
        texts.insert(node, 0, text);
        let (node, _, text) = due.into_iter().find_map(|step| texts.apply(step))?;
        let from = AttemptId { session: me, ..from };
        let text = if self.miscounts { text + "!" } else { text };
        if let Some(owner) = self.layout.owner(index).filter(|owner| *owner != me) {
            self.out.push_back((owner, Peer::Partial { from, node, index, text, digest }));
            return None;
        }
        self.publish(from, index, &text);
        Some((index, text))
    }

    /// Sends a whole sum to the coordinator and to workers.
    fn publish(&mut self, from: AttemptId, index: u32, text: &str) {
        let fault = if std::mem::take(&mut self.nan) { "NaN".into() } else { text.to_string() };
        self.roots.push_back(Event::Chunk {
            from,
            node: Node::ROOT,
            index,
            digest: None,
            fault: Some(fault),
        });
        self.pass_on(from.session, index, text);
    }

    /// Sends a sum to the workers that get it from this one.
    fn pass_on(&mut self, me: Session, index: u32, text: &str) {
        let (step, attempt) = (self.step, self.attempt);
        for to in self.layout.receivers(me, index) {
            let wrong = if std::mem::take(&mut self.lies) { "?" } else { "" };
            self.out.push_back((to, Peer::Sum { step, attempt, index, text: format!("{text}{wrong}") }));
        }
    }

    /// Another owner's sum has come.
    pub fn sum(&mut self, me: Session, attempt: u32, index: u32, text: &str) {
        let passes_on = attempt == self.attempt && self.layout.receivers(me, index).next().is_some();
        if passes_on {
            let wrong = if std::mem::take(&mut self.misquotes) { "?" } else { "" };
            self.pass_on(me, index, &format!("{text}{wrong}"));
        }
    }
}
