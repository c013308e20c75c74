//! Checkpoints that are whole or absent, in the format that PyTorch's users read.
//!
//! A checkpoint is a directory `step-NNNNNNNN` (the step in 8 digits, more if it has more)
//! in a run's `checkpoints/`, which this crate calls the root:
//!
//! * `model.safetensors`: the parameters, under PyTorch's names and shapes, as `F32`, in
//!   the order of their names;
//! * `optimizer.safetensors`: the optimizer's first moment, under the same names; further ones are in
//!   `optimizer-2.safetensors` and `optimizer-3.safetensors`;
//! * `manifest.json`: [`Meta`], the size and SHA-256 of each file, and a SHA-256 of its
//!   own text in its first line.
//!
//! # CKPT-1: whole or absent, and verified when read
//!
//! [`write()`] fills a hidden directory beside the others, syncs every file and the directory itself to the disk
//! (`fsync`), renames it into place, and syncs the rename before it returns. The consequences:
//!
//! * If the process dies at any point, every checkpoint that was there is still there, and the new one is whole or
//!   absent. [`clean`] removes unfinished ones.
//! * The same holds if the power fails, as far as the file system and the disk keep what
//!   `fsync` says. A checkpoint whose [`write()`] returned is there afterwards.
//! * [`read`] compares sizes, checksums, names, shapes, the digest and the parameters' SHA-256 before it returns
//!   anything. It detects accidents. It does not detect forgeries, because everyone who can write to the directory
//!   can write matching checksums.
//!
//! [`files`] lists what a file system may lack, and the replacement for it.
//!
//! One process writes to a root at a time: the coordinator, which locks its run directory.
//! Memory beside the model itself is a few buffers of about 1 MiB, in both directions.

#![forbid(unsafe_code)]

mod error;
pub mod files;
#[cfg(test)]
mod hostile;
mod meta;
mod store;
mod tensors;
mod weights;

use tally_numerics::update::rule::MAX_MOMENTS;

pub use error::{CheckpointError, remedy};
pub use meta::{Meta, ProgramConfig, VERSION};
pub use store::{Checkpoint, LINKS, Newest, clean, directory, link, list, newest_whole, prune, read, write};
pub use weights::{Weights, read_partial_weights, read_weights, read_weights_from};

/// The parameters' file in a checkpoint.
pub const MODEL: &str = "model.safetensors";
/// The files of the optimizer's moments in a checkpoint.
pub const MOMENTS: [&str; MAX_MOMENTS] =
    ["optimizer.safetensors", "optimizer-2.safetensors", "optimizer-3.safetensors"];
/// The manifest's file in a checkpoint.
pub const MANIFEST: &str = "manifest.json";
