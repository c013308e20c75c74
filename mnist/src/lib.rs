//! Tally's built-in program: networks that read a handwritten digit of MNIST, and its sum and difference with a
//! random number.
//!
//! * [`data`]: MNIST, its IDX files, and the random numbers.
//! * [`network`]: the networks and their engines, losses and metrics; [`arguments`] offers them to a worker, [`program`] to a
//!   coordinator.
//! * [`predict`] and [`evaluate`] use a checkpoint; [`digit_image`] turns pictures into digits for it.
//! * [`panels`], [`prediction_server`], [`sample_grid`] and [`gallery`] show digits with a checkpoint's predictions.

#![deny(unsafe_code)]

pub mod arguments;
pub mod cli;
pub mod data;
pub mod digit_image;
pub mod evaluate;
pub mod gallery;
pub mod network;
pub mod panels;
pub mod predict;
pub mod prediction_server;
pub mod program;
pub mod sample_grid;

pub use arguments::MnistProgram;
pub use data::{Mnist, MnistWithNumbers, Samples};
pub use network::backend::manifest;
pub use network::metrics::schema;
pub use network::{LabelLoss, ModelSpec};
