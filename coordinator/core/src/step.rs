//! One attempt at one step: its assignments, what has arrived, and whether it is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::schema::Sums;
use tally_numerics::tree::{Node, Tree};

use super::assign::{self, Load};
use super::audit::Audit;
use super::cluster::Session;
use super::events::Receipt;
use super::reduction::Reduction;

/// A step in flight.
#[derive(Debug)]
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
    /// The additions.
    pub reduction: Reduction,
    /// What came for each leaf, by the first trailer that covered it.
    pub receipts: BTreeMap<u32, Receipt>,
    /// Contributions whose header was checked, so that their chunks are accepted.
    pub opened: BTreeSet<(Session, Node)>,
    /// Trailers that have come: a second is a violation.
    pub closed: BTreeSet<(Session, Node)>,
    /// Nodes that were assigned again because this worker was late with them.
    pub speculative: BTreeSet<(Session, Node)>,
    /// The audit that the commit waits for.
    pub audit: Option<Audit>,
    /// Audits that were requested and not answered yet.
    pub audits: BTreeSet<(Session, Node)>,
    /// Waiting for the server to report that the update is applied.
    pub closing: bool,
    tree: Tree,
}

impl StepInFlight {
    /// An attempt of which nothing has come yet.
    #[must_use]
    pub fn new(tree: Tree, chunks: u32, step: u64, attempt: u32, samples: usize, now: Duration) -> Self {
        Self {
            step,
            attempt,
            samples,
            started: now,
            reduced: None,
            reduction: Reduction::new(tree, chunks, samples),
            receipts: BTreeMap::new(),
            opened: BTreeSet::new(),
            closed: BTreeSet::new(),
            speculative: BTreeSet::new(),
            audit: None,
            audits: BTreeSet::new(),
            closing: false,
            tree,
        }
    }

    /// Whether the root and the receipts of every leaf that holds a sample are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.reduction.is_complete()
            && self.receipts.values().map(|r| r.samples as usize).sum::<usize>() == self.samples
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

    /// Whether the sum waits for a node: a chunk of it is missing that may be sent by now, or
    /// nothing but its trailer is.
    #[must_use]
    pub fn awaits(&self, node: Node) -> bool {
        let chunks = self.reduction.chunks();
        let allowed = chunks.min(self.reduction.emitted() + tally_numerics::CREDIT_WINDOW as u32);
        let all_here = (0..allowed).all(|chunk| self.reduction.is_covered(node, chunk));
        !self.is_done(node) && (!all_here || allowed == chunks)
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
