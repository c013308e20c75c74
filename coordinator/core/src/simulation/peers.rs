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
    /// A chunk of a node, to its owner.
    Partial { from: AttemptId, node: Node, index: u32, text: String, digest: Digest },
    /// A sum, from its owner.
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
    reduction: Option<Reduction>,
    texts: TextSums,
    /// The next sum that goes to a single worker is wrong.
    pub lies: bool,
    /// The next sum that goes to the coordinator is NaN.
    pub nan: bool,
}

impl PeerSide {
    /// An attempt is announced; a second time to a worker that was sent a state.
    pub fn begin(
        &mut self,
        shape: Shape,
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
        let reduction = Some(Reduction::new(shape.tree, shape.chunks, samples));
        let (lies, nan) = (self.lies, self.nan);
        *self = Self { step, attempt, layout, digest, own, out, reduction, lies, nan, ..Self::default() };
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
        let mine = self.layout.owner(index) == Some(me);
        if from.attempt != self.attempt || !mine || digest != self.digest {
            return None;
        }
        let Contribution::Take(due) = self.reduction.as_mut()?.contribute(node, index) else { return None };
        self.texts.insert(node, index, text);
        let (index, text) = due.into_iter().find_map(|step| self.texts.apply(step))?;
        self.publish(me, index, &text);
        Some((index, text))
    }

    /// Sends a whole sum to everybody but this worker.
    fn publish(&mut self, me: Session, index: u32, text: &str) {
        let (step, attempt) = (self.step, self.attempt);
        let from = AttemptId { session: me, step, attempt };
        let fault = if std::mem::take(&mut self.nan) { "NaN".into() } else { text.to_string() };
        self.roots.push_back(Event::Chunk {
            from,
            node: Node::ROOT,
            index,
            digest: None,
            fault: Some(fault),
        });
        for &to in self.layout.linked.iter().filter(|to| **to != me) {
            let wrong = if std::mem::take(&mut self.lies) { "?" } else { "" };
            self.out.push_back((to, Peer::Sum { step, attempt, index, text: format!("{text}{wrong}") }));
        }
    }
}
