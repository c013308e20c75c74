//! What a network is to the Burn engine: a name, a list of tensors, and a forward pass.
//!
//! A model of one's own is one file under [`networks`](super::networks) that implements
//! [`Network`], and a word for it in [`ModelSpec`](crate::engine::ModelSpec). The engine
//! does the rest: it keeps the parameters, differentiates, and hands out the gradient in
//! the order of the list.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use tally_numerics::manifest::{Manifest, TensorSpec};

use super::convolution::ConvolutionBackend;

/// A network for the task: from an image and a number to a digit, their sum and their
/// difference.
pub trait Network: Send + Sync + 'static {
    /// The network's name, as on the command line.
    fn name(&self) -> &'static str;

    /// Its tensors with PyTorch's names and shapes, in the order in which the backward
    /// pass completes their gradients: the heads first, the first layer last.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// The answers for images `(n, 1, 28, 28)`, normalised, and numbers `(n, 1)`, 0 to 9.
    ///
    /// It must treat every sample by itself, or leaves of a step would not add up to the
    /// step. Layers that pass a NaN on, as the engine promises, are in
    /// [`layers`](super::layers).
    fn forward<B: ConvolutionBackend>(
        &self,
        parameters: &Parameters<B>,
        images: Tensor<B, 4>,
        numbers: Tensor<B, 2>,
    ) -> Outputs<B>;

    /// The list of tensors, checked.
    ///
    /// # Panics
    /// If the list is no manifest, which is a mistake in the network's own file.
    #[allow(clippy::expect_used)] // The list is part of the program, and a test reads each network's.
    fn manifest(&self) -> Manifest {
        Manifest::new(self.tensors()).expect("a network's list of tensors is a manifest")
    }
}

/// What a network answers for `n` samples.
pub struct Outputs<B: Backend> {
    /// Scores of the ten digits, `(n, 10)`.
    pub logits: Tensor<B, 2>,
    /// Number plus digit, `(n, 1)`.
    pub sum: Tensor<B, 2>,
    /// Their absolute difference, `(n, 1)`.
    pub difference: Tensor<B, 2>,
}

impl<B: Backend> Outputs<B> {
    /// All of them side by side, `(n, 12)`, so that they are read in one go.
    #[must_use]
    pub fn joined(self) -> Tensor<B, 2> {
        Tensor::cat(vec![self.logits, self.sum, self.difference], 1)
    }
}

/// A network's parameters on a device, by name.
#[derive(Debug)]
pub struct Parameters<B: Backend> {
    manifest: Manifest,
    /// One flat tensor for each of the manifest's, in its order.
    flat: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Parameters<B> {
    /// # Panics
    /// If there is not one flat tensor for each of the manifest's.
    pub(super) fn new(manifest: Manifest, flat: Vec<Tensor<B, 1>>) -> Self {
        assert_eq!(manifest.tensors().len(), flat.len(), "a manifest names every tensor");
        Self { manifest, flat }
    }

    /// The same parameters with each tensor as `convert` makes it.
    pub(super) fn map<T: Backend>(&self, convert: impl Fn(Tensor<B, 1>) -> Tensor<T, 1>) -> Parameters<T> {
        Parameters { manifest: self.manifest.clone(), flat: self.flat.iter().cloned().map(convert).collect() }
    }

    pub(super) fn flat(&self) -> &[Tensor<B, 1>] {
        &self.flat
    }

    /// The tensor called `name`, in its shape.
    ///
    /// # Panics
    /// If the network's list has no such tensor of `D` axes: a mistake in its own file.
    #[must_use]
    #[allow(clippy::expect_used)] // A network and its list are written together.
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let index = self.manifest.find(name).expect("a network asks for tensors of its own list");
        let shape = &self.manifest.tensors()[index].shape;
        assert_eq!(shape.len(), D, "{name} has {} axes", shape.len());
        let shape: [usize; D] = std::array::from_fn(|axis| shape[axis] as usize);
        self.flat[index].clone().reshape(shape)
    }
}
