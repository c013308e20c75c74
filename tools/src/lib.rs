//! What checks and measures Tally from outside: the programs in `src/bin`, and what they share with the tests.
//!
//! [`cluster`] starts the real binaries, as a user does, and reads what they print and write. [`chaos`] does a run harm
//! and says whether each promise held; [`gpu`] checks a device; [`scaling`] holds `coordinator plan` against real
//! clusters; [`load`] makes connections that mean no good.

#![forbid(unsafe_code)]
// A harness fails by panicking, with what the processes printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod chaos;
pub mod cluster;
pub mod gpu;
pub mod load;
mod process;
mod relay;
mod run_dir;
pub mod scaling;
pub mod secrets;
pub mod statistics;
