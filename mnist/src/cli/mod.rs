//! Commands for people.

pub mod samples;
