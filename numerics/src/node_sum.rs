//! The gradient of a node of the tree, from its microbatches' gradients (**SUM-1**).

use crate::sum::Fold;
use crate::wire::WireDtype;

/// The gradient of a node, added up microbatch by microbatch along its subtree. Each gradient and each sum is rounded
/// to the format of the wire. Buffers are reused.
#[derive(Debug)]
pub struct NodeSum {
    rounding: WireDtype,
    fold: Fold<Vec<f32>>,
    free: Vec<Vec<f32>>,
}

impl NodeSum {
    /// An empty sum whose values are rounded to this format.
    #[must_use]
    pub fn new(rounding: WireDtype) -> Self {
        Self::with_buffers(rounding, Vec::new())
    }

    /// The same, with buffers that it may overwrite; [`drain`](Self::drain) returns them.
    #[must_use]
    pub fn with_buffers(rounding: WireDtype, free: Vec<Vec<f32>>) -> Self {
        Self { rounding, fold: Fold::default(), free }
    }

    /// A buffer of `len` elements with arbitrary contents.
    pub fn buffer(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.free.pop().unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    /// Adds the gradient of the next microbatch, from left to right.
    ///
    /// # Panics
    /// If the gradients differ in length.
    pub fn push(&mut self, mut gradient: Vec<f32>) {
        self.rounding.round(&mut gradient);
        self.push_value(Some(gradient));
    }

    /// The next microbatch has no samples.
    pub fn push_empty(&mut self) {
        self.push_value(None);
    }

    fn push_value(&mut self, gradient: Option<Vec<f32>>) {
        let (rounding, free) = (self.rounding, &mut self.free);
        self.fold.push(gradient, |mut left: Vec<f32>, right| {
            rounding.add(&mut left, &right);
            free.push(right);
            left
        });
    }

    /// See [`Fold::pending`].
    pub fn pending(&self) -> impl Iterator<Item = &Vec<f32>> {
        self.fold.pending()
    }

    /// The sum after `2^k` microbatches; `None` if all were empty.
    #[must_use]
    pub fn finish(self) -> Option<Vec<f32>> {
        self.fold.finish()
    }

    /// All buffers, including those of values that are still needed.
    #[must_use]
    pub fn drain(mut self) -> Vec<Vec<f32>> {
        self.free.extend(self.fold.drain());
        self.free
    }
}
