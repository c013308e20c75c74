//! Parts of an engine that computes with Burn, for any model on any device that Burn has a backend for.
//!
//! A model is a list of tensors and a forward pass over [`Parameters`], made of [`layers`]. Its replica lives on the
//! device ([`device_replica`]), and [`checked_replica`] turns the device's failures into errors. The update is an
//! operation of the backend that rounds exactly as the coordinator does ([`update`], **REP-1**), and so is the rounding
//! of a node's sum ([`sum`], **SUM-1**). [`convolution`] makes the 3×3 convolution fast on CPUs. A [`DeviceContext`] says
//! where all of this is computed.

pub mod checked_replica;
pub mod convolution;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device_context;
pub mod device_replica;
pub mod layers;
pub mod parameters;
pub mod relu;
pub mod sum;
pub mod update;

pub use checked_replica::CheckedReplica;
pub use convolution::ConvolutionBackend;
pub use device_context::{DeviceContext, Memory, thread_pool};
pub use device_replica::DeviceReplica;
pub use parameters::Parameters;
pub use sum::RoundingBackend;
pub use update::UpdateBackend;

/// A backend with the operations that an engine needs beside Burn's own.
pub trait BurnBackend: ConvolutionBackend + UpdateBackend + RoundingBackend {}
impl<B: ConvolutionBackend + UpdateBackend + RoundingBackend> BurnBackend for B {}
