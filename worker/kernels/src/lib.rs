//! Kernels for a network of 3×3 convolutions on a CPU. They know nothing of Burn, of engines or of the cluster: they
//! take slices of `f32` and write slices of `f32`.
//!
//! # One result everywhere
//! Every kernel gives the same bits on every processor, with any number of threads (**SUM-1**). That follows from four
//! rules:
//!
//! 1. Vector lanes run over *outputs*. Each output is one chain of fused multiply-adds in one fixed order, never a sum
//!    over lanes, so the width of a vector does not change a result.
//! 2. Every path rounds alike: [`simd_vec`] offers only operations that IEEE 754 defines to the bit, and the same generic
//!    source is compiled for each instruction set.
//! 3. Threads split outputs, never a sum.
//! 4. Forward pass and input gradient compute every image independently. A weight gradient is summed in one order within
//!    a microbatch and along the tree over microbatches ([`reduce`]), whatever the batch.
//!
//! # Layout
//! Activations are stored as [`planes`] describes: blocks of [`BLOCK`] channels, in a block pixel after pixel, in a pixel
//! image after image, in an image its 32 channels. So the images of a pixel, and those of the next pixel, are consecutive
//! rows, of which a register tile takes a dozen at a time; a shift by a pixel is a constant distance; and the two operands
//! of a weight gradient need no packing.
//!
//! # Unsafe code
//! It is in three files. [`simd_vec`] and [`simd`] use instructions whose presence a token proves (and a prefetch, which
//! has no effect on memory); [`tile`] moves pointers through slices that its safe interface has checked.

#![deny(unsafe_code)]

pub mod dense;
pub mod direct;
pub mod epilogue;
pub mod first;
pub mod nchw;
pub mod pack;
pub mod planes;
pub mod pool;
pub mod reduce;
mod scratch;
pub mod simd;
pub mod simd_vec;
pub mod tile;
pub mod winograd;

pub use epilogue::Epilogue;
pub use planes::Planes;
pub use reduce::{NodeParts, Part};
pub use simd::Simd;

/// Channels in a block: two vectors of sixteen.
pub const BLOCK: usize = 32;
/// Taps of a 3×3 kernel.
pub const TAPS: usize = 9;
