//! Everything that needs more than one process.
//!
//! [`cluster`] starts the real binaries, as a user does, and looks at what they print and
//! write. The tests beside this library are one idea a file; each test's name begins with
//! the promise it proves (see ARCHITECTURE.md). [`hostile`] is the peer that breaks every rule, for
//! the tests and for `fuzz/`. None asserts how long something took: what
//! is waited for has a deadline so generous that only a hang reaches it.

#![forbid(unsafe_code)]
// A harness fails by panicking, with what the processes printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod chaos;
pub mod cluster;
pub mod cuda_on_cpu;
pub mod flood;
pub mod gpu;
pub mod hostile;
pub mod interpreter;
mod process;
mod relay;
mod run_dir;
pub mod scaling;
pub mod secrets;
pub mod statistics;
pub mod undisturbed;
