//! The coordinator: deals samples to workers, sums their gradients, keeps the referee copy.
//!
//! [`core`] decides and knows no I/O; [`shell`] performs what it decides; [`run`] is a run
//! on disk; [`cli`], [`console`], [`metrics`] and [`http`] are what people and machines see.
//! [`launch`] puts them together; [`local`] adds workers in the same process.

#![forbid(unsafe_code)]

pub mod cli;
pub mod console;
pub mod core;
pub mod http;
pub mod launch;
pub mod local;
pub mod metrics;
pub mod run;
pub mod shell;
