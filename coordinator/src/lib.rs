//! The coordinator: it sends samples to workers, adds their gradients, and keeps the master copy of the state.
//!
//! tally-core decides and does no I/O; [`server`] performs its actions; [`access`] checks what each peer may do;
//! [`observer`] is the interface through which a run is shown. This library depends on nothing of the worker, and on
//! no program.

#![forbid(unsafe_code)]

pub mod access;
pub mod dataset;
pub mod observer;
pub mod server;
pub mod timeline;
