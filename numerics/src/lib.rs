//! The arithmetic on which the coordinator and every worker must agree bit for bit.
//!
//! Nothing here does I/O, knows a clock, or depends on a thread's schedule: the same
//! arguments give the same bits on every machine that rounds as IEEE 754 says. The crate
//! holds the reduction tree ([`tree`]), which additions of it are due ([`reduction`]), and the sums along it ([`sum`],
//! [`node_sum`]), rounded
//! for the wire or not ([`wire`]), the optimizer's state ([`state`]) and its update ([`update`]) with its digest
//! ([`digest`]), the gradient's norm ([`norm`]), the streams of random words ([`random`]), the
//! order of samples ([`order`]) and the initial parameters ([`init`]) drawn from them, the list
//! of a network's tensors ([`manifest`]), who adds up which chunk ([`layout`]), and a program's losses and metrics ([`schema`]).
//!
//! Promises kept here (see ARCHITECTURE.md): **SUM-1** by [`tree`], [`sum`], [`node_sum`] and
//! [`wire`], **REP-1** by [`update`] and [`digest`], **DATA-2** by [`random`] and [`order`].

#![deny(unsafe_code)]

pub mod digest;
pub mod init;
pub mod layout;
pub mod manifest;
pub mod node_sum;
pub mod norm;
pub mod order;
pub mod random;
pub mod reduction;
pub mod schema;
mod simd;
pub mod state;
pub mod sum;
pub mod tree;
pub mod update;
pub mod wire;

/// Elements of a gradient that are sent and added together: 2¹⁶ floats, 256 KiB. A [block](norm::BLOCK) of the norm is
/// several whole chunks.
pub const CHUNK: usize = 1 << 16;

/// How many chunks of one node may be on their way before the first of them is reduced.
///
/// It bounds the coordinator's memory to this many chunks for each contributed node.
pub const CREDIT_WINDOW: usize = 32;

/// Samples of a microbatch of the test pass. The number is fixed, so that the bits of its sums are.
pub const TEST_MICROBATCH: usize = 100;

/// How many chunks a vector of `len` elements has; the last may be short.
#[must_use]
pub const fn chunks(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// The elements of chunk `index` in a vector of `len` elements.
#[must_use]
pub fn chunk_range(len: usize, index: usize) -> std::ops::Range<usize> {
    (index * CHUNK).min(len)..((index + 1) * CHUNK).min(len)
}
