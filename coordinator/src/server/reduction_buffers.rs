//! The floats of the step in flight, where the core's additions are done (**SUM-1**).

use std::collections::HashMap;
use std::sync::Arc;

use tally_numerics::norm;
use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;

use tally_core::reduction::ReductionStep;
use tally_proto::pool::Chunk;

/// Shares a chunk between the receivers' messages and the master.
#[derive(Clone, Debug)]
pub struct Shared(pub Arc<Chunk>);

impl AsRef<[f32]> for Shared {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

/// Chunks that wait for their siblings, and the root's as they become whole.
#[derive(Debug, Default)]
pub struct ReductionBuffers {
    dtype: WireDtype,
    waiting: HashMap<(Node, u32), Chunk>,
    root: Vec<Option<(Shared, f64)>>,
}

impl ReductionBuffers {
    /// Buffers for sums of this type.
    #[must_use]
    pub fn new(dtype: WireDtype) -> Self {
        Self { dtype, ..Self::default() }
    }

    /// Drops everything and makes room for a root of `chunks` chunks.
    pub fn reset(&mut self, chunks: usize) {
        self.waiting.clear();
        self.root.clear();
        self.root.resize(chunks, None);
    }

    /// Keeps a node's chunk, and drops those of the nodes below it, which it covers.
    pub fn insert(&mut self, node: Node, index: u32, values: Chunk) {
        self.waiting.retain(|&(other, chunk), _| chunk != index || !node.covers(other));
        self.waiting.insert((node, index), values);
    }

    /// Performs a step of the reduction, and returns the chunk of the root that becomes whole, if one does.
    pub fn apply(&mut self, step: ReductionStep) -> Option<(u32, Shared)> {
        match step {
            ReductionStep::Add { parent, chunk } => {
                let [left, right] = parent.children().map(|child| self.waiting.remove(&(child, chunk)));
                let (Some(mut left), Some(right)) = (left, right) else {
                    debug_assert!(false, "the core asks for additions of chunks that are there");
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
            ReductionStep::RootReady { chunk } => {
                let value = self.waiting.remove(&(Node::ROOT, chunk))?;
                let squares = norm::sum_of_squares(&value);
                let shared = Shared(Arc::new(value));
                *self.root.get_mut(chunk as usize)? = Some((shared.clone(), squares));
                Some((chunk, shared))
            }
        }
    }

    /// The root's chunks that are whole so far, with their places.
    pub fn emitted(&self) -> impl Iterator<Item = (u32, Shared)> + '_ {
        let whole = self.root.iter().enumerate();
        whole.filter_map(|(index, chunk)| chunk.as_ref().map(|(chunk, _)| (index as u32, chunk.clone())))
    }

    /// The square of the root's norm, added up chunk after chunk.
    #[must_use]
    pub fn squared_norm(&self) -> f64 {
        self.root.iter().flatten().map(|(_, squares)| squares).sum()
    }

    /// The root's chunks.
    pub fn root(&self) -> impl Iterator<Item = &Shared> {
        self.root.iter().flatten().map(|(chunk, _)| chunk)
    }
}
