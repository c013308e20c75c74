//! The floats of the step in flight, where the core's additions are done (**SUM-1**).

use std::collections::HashMap;
use std::sync::Arc;

use tally_numerics::manifest::Manifest;
use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;
use tally_numerics::{CHUNK, norm};

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
#[derive(Debug)]
pub struct ReductionBuffers {
    dtype: WireDtype,
    /// Elements of a gradient that count in its norm; buffers follow them.
    parameters: usize,
    waiting: HashMap<(Node, u32), Chunk>,
    root: Vec<Option<(Shared, f64)>>,
}

impl ReductionBuffers {
    /// Buffers for sums of this type, of gradients of a model with these tensors.
    #[must_use]
    pub fn new(dtype: WireDtype, tensors: &Manifest) -> Self {
        Self { dtype, parameters: tensors.parameters_len(), waiting: HashMap::new(), root: Vec::new() }
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
                let squares = self.squares(chunk, &value);
                let shared = Shared(Arc::new(value));
                *self.root.get_mut(chunk as usize)? = Some((shared.clone(), squares));
                Some((chunk, shared))
            }
        }
    }

    /// The sum of the squares of a chunk of the root, without the buffers; NaN if one of those is no number.
    fn squares(&self, chunk: u32, values: &[f32]) -> f64 {
        let parameters = self.parameters.saturating_sub(chunk as usize * CHUNK).min(values.len());
        let (parameters, buffers) = values.split_at(parameters);
        if norm::first_non_finite(buffers).is_some() { f64::NAN } else { norm::sum_of_squares(parameters) }
    }

    /// The root's chunks that are whole so far, with their places.
    pub fn emitted(&self) -> impl Iterator<Item = (u32, Shared)> + '_ {
        let whole = self.root.iter().enumerate();
        whole.filter_map(|(index, chunk)| chunk.as_ref().map(|(chunk, _)| (index as u32, chunk.clone())))
    }

    /// The square of the norm of the root without its buffers, added up chunk after chunk.
    #[must_use]
    pub fn squared_norm(&self) -> f64 {
        self.root.iter().flatten().map(|(_, squares)| squares).sum()
    }

    /// The root's chunks.
    pub fn root(&self) -> impl Iterator<Item = &Shared> {
        self.root.iter().flatten().map(|(chunk, _)| chunk)
    }
}
