//! x
pub mod samples;
pub use samples::Samples;
