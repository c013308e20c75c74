//! The floats of a reduction: chunks of nodes that wait for their siblings (**SUM-1**).

use std::collections::HashMap;

use tally_numerics::reduction::ReductionStep;
use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;

use crate::pool::Chunk;

/// Chunks that wait, and the additions of them that a [`Reduction`](tally_numerics::reduction::Reduction) asks for.
#[derive(Debug)]
pub struct PartialSums {
    dtype: WireDtype,
    waiting: HashMap<(Node, u32), Chunk>,
}

impl PartialSums {
    /// Nothing yet, of gradients of this type.
    #[must_use]
    pub fn new(dtype: WireDtype) -> Self {
        Self { dtype, waiting: HashMap::new() }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Keeps a node's chunk, and drops those of the nodes below it, which it covers.
    pub fn insert(&mut self, node: Node, index: u32, values: Chunk) {
        self.waiting.retain(|&(other, chunk), _| chunk != index || !node.covers(other));
        self.waiting.insert((node, index), values);
    }

    /// Performs a step of the reduction, and returns the output that becomes whole, if one does: its node, the chunk and
    /// the sum.
    pub fn apply(&mut self, step: ReductionStep) -> Option<(Node, u32, Chunk)> {
        match step {
            ReductionStep::Add { parent, chunk } => {
                let [left, right] = parent.children().map(|child| self.waiting.remove(&(child, chunk)));
                let (Some(mut left), Some(right)) = (left, right) else {
                    debug_assert!(false, "additions are of chunks that are there");
                    return None;
                };
                self.dtype.add(&mut left, &right);
                self.waiting.insert((parent, chunk), left);
                None
            }
            ReductionStep::Promote { child, chunk } => {
                let value = self.waiting.remove(&(child, chunk))?;
                self.waiting.insert((child.parent()?, chunk), value);
                None
            }
            ReductionStep::Ready { node, chunk } => {
                self.waiting.remove(&(node, chunk)).map(|value| (node, chunk, value))
            }
        }
    }
}
