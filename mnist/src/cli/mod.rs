//! Commands for people.

pub mod coordinator;
pub mod samples;
pub mod schedule;
pub mod worker;
