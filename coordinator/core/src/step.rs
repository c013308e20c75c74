//! One attempt at one step: its assignments, what has arrived, and whether it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::schema::Sums;
use tally_numerics::tree::{Node, Tree};

use super::assign::{self, Load};
use super::audit::Audit;
use super::cluster::Session;
use super::events::Receipt;
use tally_numerics::layout::{Layout, OwnChunks};
use tally_numerics::reduction::{Contribution, Reduction, ReductionStep};

/// A step in flight.
#[derive(Clone, Debug)]
pub struct StepInFlight {
    /// From 1.
    pub step: u64,
    /// Raised when the step starts again.
    pub attempt: u32,
    /// Samples of the whole step.
    pub samples: usize,
    /// When the plans went out.
    pub started: Duration,
    /// When the root became whole.
    pub reduced: Option<Duration>,
    /// Where the chunks are added up.
    pub layout: Layout,
    /// The chunks that the coordinator adds up.
    pub own: OwnChunks,
    /// When owners' sums are due: known once all receipts are there.
    pub sums_due: Option<Duration>,
    /// The additions, as far as the coordinator knows: of an owner's chunk only whether its sum has come.
    pub reduction: Reduction,
    /// What came for each leaf, by the first trailer that covered it.
    pub receipts: BTreeMap<u32, Receipt>,
    /// Contributions whose header was checked, so that their chunks are accepted.
    pub opened: BTreeSet<(Session, Node)>,
    /// Nodes that were assigned again because this worker was late with them.
    pub speculative: BTreeSet<(Session, Node)>,
    /// The audit that the commit waits for.
    pub audit: Option<Audit>,
    /// Audits that were requested and not answered yet.
    pub audits: BTreeSet<(Session, Node)>,
    /// An audit of owners' sums may begin: there has been none, no node was computed by two workers, and no linked worker was sent
    /// owners' sums by the coordinator, because it would not send what those are made of.
    pub may_audit_sums: bool,
    /// The numerics classes of all that were given nodes, of those that are gone as well.
    pub classes: BTreeSet<String>,
    /// Owners that sent a sum with NaN or infinity in it.
    pub unsound: BTreeSet<Session>,
    /// Waiting for the server to report that the update is applied.
    pub closing: bool,
    tree: Tree,
}

impl StepInFlight {
    /// An attempt of which nothing has come yet.
    #[must_use]
    pub fn new(
        tree: Tree,
        chunks: u32,
        (step, attempt): (u64, u32),
        samples: usize,
        now: Duration,
        layout: Layout,
    ) -> Self {
        Self {
            step,
            attempt,
            samples,
            started: now,
            reduced: None,
            own: OwnChunks::new(chunks, &layout),
            layout,
            sums_due: None,
            reduction: Reduction::new(tree, chunks, samples),
            receipts: BTreeMap::new(),
            opened: BTreeSet::new(),
            speculative: BTreeSet::new(),
            audit: None,
            audits: BTreeSet::new(),
            may_audit_sums: true,
            classes: BTreeSet::new(),
            unsound: BTreeSet::new(),
            closing: false,
            tree,
        }
    }

    /// A chunk of a node's sum has come.
    pub fn contribute(&mut self, now: Duration, node: Node, chunk: u32) -> Contribution {
        let verdict = self.reduction.contribute(node, chunk);
        if let Contribution::Take(due) = &verdict
            && matches!(due.last(), Some(ReductionStep::Ready { .. }))
        {
            self.own.became_whole(chunk);
        }
        if self.reduction.is_complete() {
            self.reduced.get_or_insert(now);
        }
        verdict
    }

    /// Whether the root and the receipts of every leaf that holds a sample are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.reduction.is_complete() && self.has_all_receipts()
    }

    /// Whether every microbatch was computed, by what workers say.
    #[must_use]
    pub fn has_all_receipts(&self) -> bool {
        self.receipts.values().map(|r| r.samples as usize).sum::<usize>() == self.samples
    }

    /// The chunks that workers own and whose sums have not come.
    #[must_use]
    pub fn missing(&self) -> Vec<u32> {
        let missing = |chunk: &u32| {
            self.layout.is_sharded()
                && !self.own.contains(*chunk)
                && !self.reduction.is_covered(Node::ROOT, *chunk)
        };
        (0..self.reduction.chunks()).filter(missing).collect()
    }

    /// Those of them that a worker owns or combines.
    #[must_use]
    pub fn missing_of(&self, worker: Session) -> Vec<u32> {
        let mut chunks = self.missing();
        chunks.retain(|chunk| self.layout.outputs(worker, *chunk).is_some());
        chunks
    }

    /// The workers that get this chunk's sum from its owner, and not from the coordinator.
    #[must_use]
    pub fn reached_by_owner(&self, chunk: u32) -> &[Session] {
        if self.own.contains(chunk) { &[] } else { &self.layout.linked }
    }

    /// The losses' means over the batch, summed along the tree.
    #[must_use]
    pub fn loss(&self) -> Sums {
        let leaves =
            (0..self.tree.microbatches()).map(|leaf| self.receipts.get(&leaf).map(|r| r.losses.clone()));
        Sums::along_tree(leaves, 0).scaled(1.0 / self.samples as f64)
    }

    /// Checks a trailer's receipts against the leaves of its node: each non-empty leaf
    /// once, with its number of samples, and no other.
    ///
    /// # Errors
    /// In words for the log and the worker's eviction.
    pub fn check(&self, node: Node, receipts: &[Receipt]) -> Result<(), String> {
        let wanted = self.tree.leaves(node).filter_map(|leaf| {
            let samples = self.tree.samples(leaf, self.samples).len() as u32;
            (samples > 0).then_some((leaf, samples))
        });
        if wanted.eq(receipts.iter().map(|r| (r.leaf, r.samples))) {
            Ok(())
        } else {
            Err(format!("its receipts for {node} are not those of the node's leaves"))
        }
    }

    /// Leaves of a node that hold a sample.
    #[must_use]
    pub fn full_leaves(&self, node: Node) -> u32 {
        let full = |leaf: &u32| !self.tree.samples(*leaf, self.samples).is_empty();
        self.tree.leaves(node).filter(full).count() as u32
    }

    /// Whether nothing of a node is missing: neither its sum nor a receipt.
    #[must_use]
    pub fn is_done(&self, node: Node) -> bool {
        let all = 0..self.reduction.chunks();
        all.into_iter().all(|chunk| self.reduction.is_covered(node, chunk))
            && self.tree.leaves(node).all(|leaf| {
                self.receipts.contains_key(&leaf) || self.tree.samples(leaf, self.samples).is_empty()
            })
    }

    /// Whether the sum waits for a worker to send this node: a chunk is missing that it may have sent to the coordinator
    /// by now, or nothing but its trailer is. `closed` says that the trailer has come.
    #[must_use]
    pub fn awaits(&self, node: Node, closed: bool, window: usize) -> bool {
        let allowed = self.own.allowed(window);
        let missing = allowed.iter().any(|&chunk| !self.reduction.is_covered(node, chunk));
        // Nothing holds a worker up that sends to owners.
        let sends_freely = self.layout.is_sharded() || allowed.len() == self.reduction.chunks() as usize;
        missing || (!closed && sends_freely && !self.is_done(node))
    }

    /// Assigns the leaves of `nodes`, of which some may be done, to workers with these loads.
    #[must_use]
    pub fn deal(&self, nodes: &[Node], loads: &mut [Load]) -> Vec<Vec<Node>> {
        let mut dealt = vec![Vec::new(); loads.len()];
        for &node in nodes {
            let leaves = self.tree.leaves(node);
            let quotas = assign::quotas(leaves.end - leaves.start, loads);
            for (i, nodes) in assign::runs(self.tree, leaves, &quotas).into_iter().enumerate() {
                dealt[i].extend(nodes.into_iter().filter(|n| !self.tree.is_empty(*n, self.samples)));
                loads[i].busy += f64::from(quotas[i]) * loads[i].per_leaf;
            }
        }
        dealt
    }
}
