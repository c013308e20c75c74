//! The coordinator: deals samples to workers, sums their gradients, keeps the master copy of the state.
//!
//! tally-core decides and knows no I/O; [`server`] performs what it decides; [`access`] says who may do what;
//! [`observer`] is how a run is shown. This library depends on nothing of the worker, and on no program.

#![forbid(unsafe_code)]

pub mod access;
pub mod dataset;
pub mod observer;
pub mod server;
pub mod timeline;
