//! The options of the commands that a program has to know of.

mod optimizer;
mod report;
mod train;
mod training;
mod unchanged;

pub use optimizer::OptimizerOptions;
pub use report::ReportOptions;
pub use train::TrainOptions;
pub use training::{CUSTOM, SEED, Training, check_microbatch, remarks};
pub use unchanged::unchanged;
