//! The command lines of the two binaries.

pub mod coordinator;
pub mod samples;
pub mod schedule;
pub mod worker;
