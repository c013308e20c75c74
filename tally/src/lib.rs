//! Trains a program on many machines, with the same bits however many there are.
//!
//! This crate puts the parts together: a coordinator ([`train`]), workers in its process ([`local_workers`]), steps
//! computed again ([`replay`]), and the command lines of both ([`cli`]), for any [`Program`](program::Program).

#![forbid(unsafe_code)]

pub mod cli;
pub mod local_workers;
pub mod options;
pub mod prepare;
pub mod program;
pub mod replay;
pub mod train;
