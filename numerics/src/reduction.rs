//! The bookkeeping of a step's reduction: which additions of the tree are due (**SUM-1**).
//!
//! It holds no floats. The holder of the floats does the requested additions, in any order, and gets the sum that the
//! tree defines. A (node, chunk) counts once: the first one wins.

use crate::tree::{Node, Tree};

/// An addition that is due, or a chunk of an output that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionStep {
    /// `parent = left + right` for this chunk.
    Add {
        /// The node that becomes whole.
        parent: Node,
        /// The chunk.
        chunk: u32,
    },
    /// The parent's other child is empty: its value is this child's.
    Promote {
        /// The child whose value it is.
        child: Node,
        /// The chunk.
        chunk: u32,
    },
    /// An output's chunk is whole.
    Ready {
        /// The output: the root, unless other nodes were asked for.
        node: Node,
        /// The chunk.
        chunk: u32,
    },
}

/// The decision about a contributed chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contribution {
    /// It is the first: keep it and do what is due.
    Take(Vec<ReductionStep>),
    /// Its sum is known already, or no output needs it: drop it.
    Duplicate,
}

/// The state of a step's tree, chunk by chunk.
#[derive(Clone, Debug)]
pub struct Reduction {
    tree: Tree,
    samples: usize,
    /// The nodes whose sums are wanted; nothing above them is added up.
    outputs: Vec<Node>,
    /// For each chunk, a bit for each node whose value is known or has been used.
    whole: Vec<Vec<u64>>,
    emitted: u32,
}

impl Reduction {
    /// Nothing contributed yet to a step of `samples` samples, of which the root's sum is wanted.
    #[must_use]
    pub fn new(tree: Tree, chunks: u32, samples: usize) -> Self {
        Self::of(tree, chunks, samples, vec![Node::ROOT])
    }

    /// The same where the sums of these nodes are wanted, of which none covers another.
    #[must_use]
    pub fn of(tree: Tree, chunks: u32, samples: usize, outputs: Vec<Node>) -> Self {
        let words = (2 * tree.microbatches() as usize).div_ceil(64);
        Self { tree, samples, outputs, whole: vec![vec![0; words]; chunks as usize], emitted: 0 }
    }

    fn is_whole(&self, node: Node, chunk: u32) -> bool {
        self.whole[chunk as usize][node.0 as usize / 64] >> (node.0 % 64) & 1 == 1
    }

    fn set_whole(&mut self, node: Node, chunk: u32) {
        self.whole[chunk as usize][node.0 as usize / 64] |= 1 << (node.0 % 64);
    }

    /// Whether this node's value no longer matters for this chunk: it, or a node above it,
    /// is whole.
    #[must_use]
    pub fn is_covered(&self, node: Node, chunk: u32) -> bool {
        let mut at = Some(node);
        while let Some(node) = at {
            if self.is_whole(node, chunk) {
                return true;
            }
            at = node.parent();
        }
        false
    }

    /// How many chunks the run's vectors have.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.whole.len() as u32
    }

    /// How many chunks of the outputs are whole.
    #[must_use]
    pub fn emitted(&self) -> u32 {
        self.emitted
    }

    /// Whether all outputs are whole.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.emitted as usize == self.outputs.len() * self.whole.len()
    }

    /// Forgets what has come of a chunk of the root that is whole, so that it can come again.
    pub fn forget(&mut self, chunk: u32) {
        self.whole[chunk as usize].fill(0);
        self.emitted -= 1;
    }

    /// A chunk of a node's sum has come. `node` and `chunk` are in range.
    pub fn contribute(&mut self, node: Node, chunk: u32) -> Contribution {
        let Some(&output) = self.outputs.iter().find(|output| output.covers(node)) else {
            return Contribution::Duplicate;
        };
        if self.is_covered(node, chunk) {
            return Contribution::Duplicate;
        }
        let mut due = Vec::new();
        let mut node = node;
        self.set_whole(node, chunk);
        while let (Some(parent), Some(sibling)) = (node.parent(), node.sibling())
            && node != output
        {
            if self.tree.is_empty(sibling, self.samples) {
                due.push(ReductionStep::Promote { child: node, chunk });
            } else if self.is_whole(sibling, chunk) {
                due.push(ReductionStep::Add { parent, chunk });
            } else {
                return Contribution::Take(due);
            }
            node = parent;
            self.set_whole(node, chunk);
        }
        self.emitted += 1;
        due.push(ReductionStep::Ready { node, chunk });
        Contribution::Take(due)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::collections::HashMap;

    use crate::sum::along_tree;
    use proptest::prelude::*;

    use super::*;

    fn take(r: &mut Reduction, node: u32) -> Vec<ReductionStep> {
        match r.contribute(Node(node), 0) {
            Contribution::Take(due) => due,
            Contribution::Duplicate => panic!("node {node} is no duplicate"),
        }
    }

    #[test]
    fn a_parent_is_added_when_both_children_are_there() {
        let mut r = Reduction::new(Tree::new(4).unwrap(), 1, 64);
        assert_eq!(take(&mut r, 4), []);
        assert_eq!(take(&mut r, 3), []);
        let add = |parent| ReductionStep::Add { parent: Node(parent), chunk: 0 };
        assert_eq!(take(&mut r, 5), [add(2), add(1), ReductionStep::Ready { node: Node::ROOT, chunk: 0 }]);
        assert!(r.is_complete());
    }

    #[test]
    fn an_empty_sibling_is_skipped() {
        // Three samples in eight leaves: only leaves 2, 5 and 7 hold one.
        let mut r = Reduction::new(Tree::new(8).unwrap(), 1, 3);
        let rise = |child| ReductionStep::Promote { child: Node(child), chunk: 0 };
        assert_eq!(take(&mut r, 10), [rise(10), rise(5)]);
        assert_eq!(take(&mut r, 15), [rise(15)]);
    }

    #[test]
    fn nothing_above_the_outputs_is_added_up() {
        let mut r = Reduction::of(Tree::new(8).unwrap(), 1, 64, vec![Node(2), Node(6)]);
        let ready = |node| ReductionStep::Ready { node: Node(node), chunk: 0 };
        assert_eq!(take(&mut r, 6), [ready(6)]);
        assert_eq!(take(&mut r, 4), []);
        assert_eq!(r.contribute(Node(7), 0), Contribution::Duplicate, "it leads to no output");
        assert_eq!(take(&mut r, 5), [ReductionStep::Add { parent: Node(2), chunk: 0 }, ready(2)]);
        assert!(r.is_complete());
    }

    #[test]
    fn a_lost_node_may_be_covered_by_its_children_or_by_the_node_itself() {
        let mut r = Reduction::new(Tree::new(4).unwrap(), 1, 64);
        take(&mut r, 4);
        // Node 2 comes whole although its left child had come: the bits are the same.
        assert_eq!(take(&mut r, 2), []);
        assert_eq!(r.contribute(Node(5), 0), Contribution::Duplicate);
        assert_eq!(r.contribute(Node(2), 0), Contribution::Duplicate);
        take(&mut r, 6);
        take(&mut r, 7);
        assert_eq!(r.contribute(Node(1), 0), Contribution::Duplicate);
        assert!(r.is_complete());
    }

    proptest! {
        /// SUM-1: for any nodes, in any order and with any repetitions, the requested additions are those of the
        /// tree.
        #[test]
        fn sum_1_any_order_of_arrival_gives_the_trees_sum(
            power in 0u32..5, samples in 1usize..80, order in proptest::collection::vec(any::<u32>(), 1..200),
        ) {
            let tree = Tree::new(1 << power).unwrap();
            let leaf = |k: u32| (!tree.samples(k, samples).is_empty()).then(|| format!("{k}"));
            let of = |node| along_tree(tree.leaves(node).map(leaf), |l, r| format!("({l}+{r})"));
            let mut r = Reduction::new(tree, 1, samples);
            let mut held: HashMap<Node, String> = HashMap::new();
            let mut root = None;
            // Random nodes first, then every leaf, so that the sum is always completed.
            let random = order.iter().map(|x| Node(1 + x % (2 * tree.microbatches() - 1)));
            for node in random.chain((0..tree.microbatches()).map(|k| tree.leaf(k))) {
                let Some(value) = of(node) else { continue };
                let Contribution::Take(due) = r.contribute(node, 0) else { continue };
                held.insert(node, value);
                for due in due {
                    match due {
                        ReductionStep::Add { parent, .. } => {
                            let [l, r] = parent.children().map(|c| held.remove(&c).unwrap());
                            held.insert(parent, format!("({l}+{r})"));
                        }
                        ReductionStep::Promote { child, .. } => {
                            let value = held.remove(&child).unwrap();
                            held.insert(child.parent().unwrap(), value);
                        }
                        ReductionStep::Ready { .. } => root = held.remove(&Node::ROOT),
                    }
                }
            }
            prop_assert!(r.is_complete());
            prop_assert_eq!(root, of(Node::ROOT));
        }
    }
}
