//! The floats of the step in flight: the additions that the core asks for (done by [`PartialSums`]), the root's chunks, and
//! their squares (**SUM-1**).

use std::sync::Arc;

use tally_numerics::CHUNK;
use tally_numerics::manifest::Manifest;
use tally_numerics::norm::{self, SquareSum};
use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;

use tally_numerics::reduction::ReductionStep;
use tally_proto::partial_sums::PartialSums;
use tally_proto::pool::Chunk;

/// Chunks of a block of the norm.
const CHUNKS_OF_BLOCK: usize = norm::BLOCK / CHUNK;

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
    /// Elements of a gradient that count in its norm; buffers follow them.
    parameters: usize,
    partial: PartialSums,
    root: Vec<Option<Shared>>,
    /// The sums of the squares of the root's blocks that are whole.
    squares: Vec<f64>,
}

impl ReductionBuffers {
    /// Buffers for sums of this type, of gradients of a model with these tensors.
    #[must_use]
    pub fn new(dtype: WireDtype, tensors: &Manifest) -> Self {
        let parameters = tensors.parameters_len();
        Self { parameters, partial: PartialSums::new(dtype), root: Vec::new(), squares: Vec::new() }
    }

    /// Drops everything and makes room for a root of `chunks` chunks.
    pub fn reset(&mut self, chunks: usize) {
        self.partial.clear();
        self.root.clear();
        self.root.resize(chunks, None);
        self.squares.clear();
        self.squares.resize(chunks.div_ceil(CHUNKS_OF_BLOCK), 0.0);
    }

    /// Keeps a node's chunk, and drops those of the nodes below it, which it covers.
    pub fn insert(&mut self, node: Node, index: u32, values: Chunk) {
        self.partial.insert(node, index, values);
    }

    /// Performs a step of the reduction, and returns the chunk of the root that becomes whole, if one does.
    pub fn apply(&mut self, step: ReductionStep) -> Option<(u32, Shared)> {
        let (_, chunk, value) = self.partial.apply(step)?;
        let shared = Shared(Arc::new(value));
        *self.root.get_mut(chunk as usize)? = Some(shared.clone());
        self.add_squares(chunk as usize / CHUNKS_OF_BLOCK);
        Some((chunk, shared))
    }

    /// Drops a chunk of the root, which will become whole again.
    pub fn forget(&mut self, chunk: u32) {
        self.root.get_mut(chunk as usize).and_then(Option::take);
    }

    /// Takes the root's chunks out.
    pub fn take_root(&mut self) -> Vec<Option<Shared>> {
        std::mem::take(&mut self.root)
    }

    /// Adds the squares of a block of the root up, once all of its chunks are whole.
    fn add_squares(&mut self, block: usize) {
        let first = block * CHUNKS_OF_BLOCK;
        let last = (first + CHUNKS_OF_BLOCK).min(self.root.len());
        let chunks: Option<Vec<&Shared>> = self.root[first..last].iter().map(Option::as_ref).collect();
        let Some(chunks) = chunks else { return };
        let mut sum = SquareSum::default();
        let mut finite = true;
        for (index, Shared(values)) in (first..).zip(chunks) {
            let parameters = self.parameters.saturating_sub(index * CHUNK).min(values.len());
            let (parameters, buffers) = values.split_at(parameters);
            sum.add(parameters);
            finite &= norm::first_non_finite(buffers).is_none();
        }
        self.squares[block] = if finite { sum.finish() } else { f64::NAN };
    }

    /// The root's chunks that are whole so far, with their places.
    pub fn emitted(&self) -> impl Iterator<Item = (u32, Shared)> + '_ {
        let whole = self.root.iter().enumerate();
        whole.filter_map(|(index, chunk)| chunk.clone().map(|chunk| (index as u32, chunk)))
    }

    /// The square of the norm of the whole root without its buffers, added up block after block. NaN if a buffer holds
    /// what is no number.
    #[must_use]
    pub fn squared_norm(&self) -> f64 {
        self.squares.iter().sum()
    }

    /// The root's chunks.
    pub fn root(&self) -> impl Iterator<Item = &Shared> {
        self.root.iter().flatten()
    }
}
