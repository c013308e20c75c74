//! Burn programs: a `Module`, a `Batcher` and a `Dataset`, trained by a cluster.
//!
//! [`job`](job()) puts them together, a [`Program`] makes a job on any of Burn's backends, and [`main`] makes a
//! command line of a program. Inside, [`module`] reads and writes a module's tensors as one flat vector, `engine` makes
//! an engine of a job, and `program` is the adapter to what coordinator and worker know of a program.

mod bench;
mod check;
mod command_line;
mod data;
mod engine;
mod job;
mod metrics;
pub mod module;
mod optimizer;
mod options;
mod program;

pub use command_line::main;
pub use job::{Job, JobBuilder, Split, StepOutput, job};
pub use metrics::{Ratio, accuracy};
pub use optimizer::{IntoOptimizer, Lion, ParameterGroup};
pub use options::{DataMode, ProgramOptions};
pub use program::Program;

/// Any error of a program's own.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with any error of a program's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;
