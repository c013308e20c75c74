//! Tests that need more than one process, or more than one crate that knows nothing of the other.
//!
//! `tally_tools::cluster` starts the real binaries, as a user does, and reads what they print and write. The tests
//! beside this library are one idea a file; each test's name begins with the promise that it proves (see
//! ARCHITECTURE.md). [`hostile`] is the peer that breaks every rule, for the tests and for `fuzz/`. No test asserts how
//! long something took: what is waited for has a deadline so generous that only a hang reaches it.

#![forbid(unsafe_code)]
// A harness fails by panicking, with what the processes printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod baseline_run;
pub mod cuda_on_cpu;
pub mod hostile;
pub mod load;
pub mod programs;
pub mod rewriting_proxy;

pub use tally_tools::cluster::free_port;
