//! Trains a program on many machines, with the same bits however many there are.
//!
//! This crate puts the parts together: a coordinator ([`train`]), workers in its process ([`local_workers`]), steps
//! computed again ([`replay`]), and the command lines of both ([`cli`]), for any
//! [`CoordinatorProgram`](program::CoordinatorProgram). A Burn program is adapted to that by [`Program`], [`job()`] and
//! [`main()`]; this is the tutorial for it.
#![cfg_attr(feature = "burn", doc = include_str!("../../docs/own-program.md"))]
#![forbid(unsafe_code)]

#[cfg(feature = "burn")]
mod burn_program;
pub mod cli;
pub mod local_workers;
pub mod options;
pub mod prepare;
pub mod program;
pub mod replay;
pub mod train;

#[cfg(feature = "burn")]
pub use burn_program::{
    DataMode, Error, IntoOptimizer, Job, JobBuilder, Lion, ParameterGroup, Program, ProgramOptions, Ratio,
    Result, Split, StepOutput, accuracy, job, main, module,
};
pub use tally_core::optimizer::{Algorithm, GroupConfig, LrSchedule, OptimizerConfig};
pub use tally_numerics::random::Stream;
