//! The coordinator: deals samples to workers, sums their gradients, keeps the referee copy.
//!
//! [`core`] decides and knows no I/O; [`shell`] performs what it decides; [`run`] is a run
//! on disk; [`view`] is what it shows of itself; [`cli`], [`console`], [`metrics`] and [`http`] are where
//! people and machines see it; [`pictures`] draws the data.
//! [`launch`] puts them together; [`local`] adds workers in the same process.

#![forbid(unsafe_code)]

pub mod access;
mod apart;
pub mod cli;
pub mod console;
pub mod core;
pub mod http;
pub mod launch;
pub mod local;
pub mod metrics;
pub mod pictures;
pub mod plan;
pub mod predictions;
pub mod report;
pub mod run;
pub mod shell;
pub mod tensorboard;
pub mod timeline;
pub mod view;
