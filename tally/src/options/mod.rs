//! The options of the commands that a program has to know of.

mod report;
mod train;
mod training;

pub use report::ReportOptions;
pub use train::TrainOptions;
pub use training::{CUSTOM, ClipNorm, SEED, Training, check_microbatch, remarks, unchanged};
