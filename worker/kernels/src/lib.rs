//! Kernels for a network of 3×3 convolutions on a CPU. They know nothing of Burn, of
//! engines or of the cluster: slices of `f32` in, slices of `f32` out.
//!
//! # One result everywhere
//! Every kernel gives the same bits on every processor, with any number of threads
//! (**SUM-1**). That follows from four rules:
//!
//! 1. Vector lanes run over *outputs*. Each output is one chain of fused multiply-adds in
//!    one fixed order, never a sum over lanes, so a vector's width can't show.
//! 2. Every path rounds alike: [`lanes`] offers only operations that IEEE 754 defines to the
//!    bit, and the same generic source is compiled for each instruction set.
//! 3. Threads split outputs, never a sum.
//! 4. Forward and data gradient treat every image by itself. A weight gradient is summed in
//!    one order inside a leaf and along the tree over [`leaves`], whatever the batch.
//!
//! # Layout
//! Activations lie in [`planes`]: blocks of [`BLOCK`] channels, in a block pixel after
//! pixel, in a pixel image after image, in an image its 32 channels. So the images of a
//! pixel, and those of the next pixel, are rows one after the other that a register tile
//! takes a dozen at a time; a shift by a pixel is a constant distance; and the two operands
//! of a weight gradient need no packing.
//!
//! # Unsafe code
//! Stands in three files: [`lanes`] and [`simd`] call what a token proves to be there (and a prefetch, which touches nothing), and
//! [`tile`] moves pointers through slices that its safe face has checked.

#![deny(unsafe_code)]

pub mod dense;
pub mod direct;
pub mod first;
pub mod lanes;
pub mod leaves;
pub mod nchw;
pub mod pack;
pub mod planes;
pub mod pool;
mod scratch;
pub mod simd;
pub mod tile;
pub mod winograd;

pub use leaves::{Leaves, Part};
pub use planes::Planes;
pub use simd::Simd;

/// Channels in a block: two vectors of sixteen.
pub const BLOCK: usize = 32;
/// Taps of a 3×3 kernel.
pub const TAPS: usize = 9;
