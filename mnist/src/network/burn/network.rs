//! A network for the Burn engine: a list of tensors and a forward pass.
//!
//! Another network is one file under [`networks`](super::networks) that implements [`Network`], and a name for it in
//! [`ModelSpec`](crate::ModelSpec). The engine does the rest: it keeps the parameters, differentiates, and returns the
//! gradient in the order of the list.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use tally_numerics::manifest::{Manifest, TensorSpec};
use tally_worker::burn::{ConvolutionBackend, Parameters};

/// A network for the task: from an image and a number to a digit, their sum and their
/// difference.
pub trait Network: Send + Sync + 'static {
    /// Its tensors with PyTorch's names and shapes, in the order in which the backward
    /// pass completes their gradients: the heads first, the first layer last.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// The outputs for images `(n, 1, 28, 28)`, normalised, and numbers `(n, 1)`, 0 to 9.
    ///
    /// Every sample must be computed independently of the others, or the microbatches of a step would not add up to
    /// the step. Layers that pass a NaN on, as the engine promises, are in [`tally_worker::burn::layers`].
    fn forward<B: ConvolutionBackend>(
        &self,
        parameters: &Parameters<B>,
        images: Tensor<B, 4>,
        numbers: Tensor<B, 2>,
    ) -> OutputTensors<B>;

    /// The list of tensors, checked.
    ///
    /// # Panics
    /// If the list is no manifest, which is a mistake in the network's own file.
    #[allow(clippy::expect_used)] // The list is part of the program, and a test reads each network's.
    fn manifest(&self) -> Manifest {
        Manifest::new(self.tensors()).expect("a network's list of tensors is a manifest")
    }
}

/// A network's outputs for `n` samples, on the device.
pub struct OutputTensors<B: Backend> {
    /// Scores of the ten digits, `(n, 10)`.
    pub logits: Tensor<B, 2>,
    /// Number plus digit, `(n, 1)`.
    pub sum: Tensor<B, 2>,
    /// Their absolute difference, `(n, 1)`.
    pub difference: Tensor<B, 2>,
}

impl<B: Backend> OutputTensors<B> {
    /// All of them side by side, `(n, 12)`, so that one transfer reads them.
    #[must_use]
    pub fn joined(self) -> Tensor<B, 2> {
        Tensor::cat(vec![self.logits, self.sum, self.difference], 1)
    }
}
