//! A model's parameters on a device.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use tally_numerics::manifest::Manifest;

/// A model's parameters on a device, by name.
#[derive(Debug)]
pub struct Parameters<B: Backend> {
    manifest: Manifest,
    /// One flat tensor for each of the manifest's, in its order.
    flat: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Parameters<B> {
    /// One flat tensor for each tensor of the manifest, in its order.
    ///
    /// # Panics
    /// If there are more or fewer.
    #[must_use]
    pub fn new(manifest: Manifest, flat: Vec<Tensor<B, 1>>) -> Self {
        assert_eq!(manifest.tensors().len(), flat.len(), "a manifest names every tensor");
        Self { manifest, flat }
    }

    /// The same parameters, each tensor converted by `convert`.
    #[must_use]
    pub fn map<T: Backend>(&self, convert: impl Fn(Tensor<B, 1>) -> Tensor<T, 1>) -> Parameters<T> {
        Parameters { manifest: self.manifest.clone(), flat: self.flat.iter().cloned().map(convert).collect() }
    }

    /// The flat tensors, in the manifest's order.
    #[must_use]
    pub fn flat(&self) -> &[Tensor<B, 1>] {
        &self.flat
    }

    /// The tensor called `name`, in its shape.
    ///
    /// # Panics
    /// If the manifest has no such tensor of `D` axes: a mistake in the model's code.
    #[must_use]
    #[allow(clippy::expect_used)] // A model and its list of tensors are written together.
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let index = self.manifest.find(name).expect("a model asks for tensors of its own list");
        let shape = &self.manifest.tensors()[index].shape;
        assert_eq!(shape.len(), D, "{name} has {} axes", shape.len());
        let shape: [usize; D] = std::array::from_fn(|axis| shape[axis] as usize);
        self.flat[index].clone().reshape(shape)
    }
}
