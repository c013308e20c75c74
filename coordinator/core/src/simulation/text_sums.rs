//! The additions of a reduction, on texts: what the coordinator and owners hold of a step.

use std::collections::HashMap;

use tally_numerics::reduction::ReductionStep;
use tally_numerics::tree::Node;

/// Chunks of nodes that wait for their siblings.
#[derive(Clone, Debug, Default)]
pub struct TextSums(HashMap<(Node, u32), String>);

impl TextSums {
    /// How many chunks wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Keeps a node's chunk, and drops those of the nodes that it covers.
    pub fn insert(&mut self, node: Node, index: u32, text: String) {
        self.0.retain(|(other, chunk), _| *chunk != index || !node.covers(*other));
        self.0.insert((node, index), text);
    }

    /// Performs a step, and returns the output that becomes whole, if one does.
    pub fn apply(&mut self, step: ReductionStep) -> Option<(Node, u32, String)> {
        let mut take = |node: Node, chunk: u32| {
            self.0.remove(&(node, chunk)).expect("SUM-1: what is to be added is there")
        };
        let (parent, chunk, text) = match step {
            ReductionStep::Add { parent, chunk } => {
                let [l, r] = parent.children().map(|child| take(child, chunk));
                (parent, chunk, format!("({l}+{r})"))
            }
            ReductionStep::Promote { child, chunk } => (child.parent().unwrap(), chunk, take(child, chunk)),
            ReductionStep::Ready { node, chunk } => return Some((node, chunk, take(node, chunk))),
        };
        self.0.insert((parent, chunk), text);
        None
    }
}
