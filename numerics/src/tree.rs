//! The reduction tree over a step's microbatches (**SUM-1**).
//!
//! A batch of `n` samples is cut into `S` leaves, `S` a power of two fixed for the run. Nodes are numbered as in a
//! heap: the root is 1, the children of `i` are `2i` and `2i + 1`, and leaf `k` is node `S + k`. The tree depends
//! only on `S` and not on the workers. So the bits of a sum along it do not depend on the workers.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// The largest number of microbatches that a step can have.
pub const MAX_MICROBATCHES: u32 = 4096;

/// A number of microbatches that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the number of microbatches must be a power of two from 1 to {MAX_MICROBATCHES}, not {0}")]
pub struct BadMicrobatches(pub u32);

/// A node of the tree; its subtree is a contiguous run of leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

impl Node {
    /// The node that holds the whole batch.
    pub const ROOT: Node = Node(1);

    /// The node above, or `None` for the root.
    #[must_use]
    pub fn parent(self) -> Option<Node> {
        (self.0 > 1).then_some(Node(self.0 / 2))
    }

    /// The other child of the node above, or `None` for the root.
    #[must_use]
    pub fn sibling(self) -> Option<Node> {
        (self.0 > 1).then_some(Node(self.0 ^ 1))
    }

    /// Whether `other` is this node or below it.
    #[must_use]
    pub fn covers(self, other: Node) -> bool {
        let (own, below) = (self.0.max(1).ilog2(), other.0.max(1).ilog2());
        own <= below && other.0 >> (below - own) == self.0
    }

    /// Both children, left first. Only meaningful above the leaves.
    #[must_use]
    pub fn children(self) -> [Node; 2] {
        [Node(2 * self.0), Node(2 * self.0 + 1)]
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The shape of a run's reduction tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    microbatches: u32,
}

impl Tree {
    /// A tree with `microbatches` leaves.
    ///
    /// # Errors
    /// [`BadMicrobatches`] unless `microbatches` is a power of two up to [`MAX_MICROBATCHES`].
    pub fn new(microbatches: u32) -> Result<Self, BadMicrobatches> {
        if microbatches.is_power_of_two() && microbatches <= MAX_MICROBATCHES {
            Ok(Self { microbatches })
        } else {
            Err(BadMicrobatches(microbatches))
        }
    }

    /// The number of leaves, `S`.
    #[must_use]
    pub fn microbatches(self) -> u32 {
        self.microbatches
    }

    /// Whether `node` is a node of this tree.
    #[must_use]
    pub fn contains(self, node: Node) -> bool {
        (1..2 * self.microbatches).contains(&node.0)
    }

    /// The node of leaf `leaf`.
    #[must_use]
    pub fn leaf(self, leaf: u32) -> Node {
        Node(self.microbatches + leaf)
    }

    /// The leaves under `node`.
    #[must_use]
    pub fn leaves(self, node: Node) -> Range<u32> {
        let depth = node.0.ilog2();
        let width = self.microbatches >> depth;
        let first = (node.0 - (1 << depth)) * width;
        first..first + width
    }

    /// The samples of leaf `leaf` in a step of `n`: `[⌊leaf·n/S⌋, ⌊(leaf+1)·n/S⌋)`.
    #[must_use]
    pub fn samples(self, leaf: u32, n: usize) -> Range<usize> {
        let cut = |i: u32| (i as u64 * n as u64 / self.microbatches as u64) as usize;
        cut(leaf)..cut(leaf + 1)
    }

    /// Whether the subtree of `node` holds no sample in a step of `n`.
    #[must_use]
    pub fn is_empty(self, node: Node, n: usize) -> bool {
        let leaves = self.leaves(node);
        self.samples(leaves.start, n).start == self.samples(leaves.end - 1, n).end
    }

    /// The fewest whole subtrees that cover `leaves` exactly, from left to right.
    #[must_use]
    pub fn cover(self, leaves: Range<u32>) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut at = leaves.start;
        while at < leaves.end {
            let mut node = self.leaf(at);
            while let Some(up) = node.parent() {
                let span = self.leaves(up);
                if span.start != at || span.end > leaves.end {
                    break;
                }
                node = up;
            }
            at = self.leaves(node).end;
            nodes.push(node);
        }
        nodes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_must_be_a_power_of_two_in_range() {
        for bad in [0, 3, 6, 12, MAX_MICROBATCHES + 1, 2 * MAX_MICROBATCHES, u32::MAX] {
            assert_eq!(Tree::new(bad), Err(BadMicrobatches(bad)));
        }
        for good in [1, 2, 8, 64, MAX_MICROBATCHES] {
            assert_eq!(Tree::new(good).unwrap().microbatches(), good);
        }
    }

    #[test]
    fn nodes_of_a_tree_of_eight() {
        let tree = Tree::new(8).unwrap();
        assert_eq!(tree.leaves(Node::ROOT), 0..8);
        assert_eq!(tree.leaves(Node(3)), 4..8);
        assert_eq!(tree.leaves(Node(6)), 4..6);
        assert_eq!(tree.leaves(Node(15)), 7..8);
        assert_eq!(tree.cover(0..8), [Node(1)]);
        assert_eq!(tree.cover(0..3), [Node(4), Node(10)]);
        assert_eq!(tree.cover(3..6), [Node(11), Node(6)]);
        assert!(!tree.contains(Node(0)) && !tree.contains(Node(16)));
    }

    proptest! {
        /// Every sample of a step lies in exactly one leaf, in order, for any batch.
        #[test]
        fn leaves_partition_a_step(power in 0u32..9, n in 0usize..5000) {
            let tree = Tree::new(1 << power).unwrap();
            let mut next = 0;
            for leaf in 0..tree.microbatches() {
                let range = tree.samples(leaf, n);
                prop_assert_eq!(range.start, next);
                prop_assert_eq!(tree.is_empty(tree.leaf(leaf), n), range.is_empty());
                next = range.end;
            }
            prop_assert_eq!(next, n);
        }

        #[test]
        fn a_cover_is_exact_and_minimal(power in 0u32..8, a in 0u32..256, b in 0u32..256) {
            let tree = Tree::new(1 << power).unwrap();
            let range = a.min(b).min(tree.microbatches())..a.max(b).min(tree.microbatches());
            let nodes = tree.cover(range.clone());
            let mut at = range.start;
            for node in &nodes {
                prop_assert_eq!(tree.leaves(*node).start, at);
                at = tree.leaves(*node).end;
            }
            prop_assert_eq!(at, range.end);
            for pair in nodes.windows(2) {
                prop_assert_ne!(pair[0].sibling(), Some(pair[1]).filter(|_| pair[0].0.is_multiple_of(2)));
            }
        }
    }
}
