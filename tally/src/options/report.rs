//! `coordinator report`.

use std::path::PathBuf;

use clap::Args;
use tally_cli::logging::LogOptions;
use tally_worker::device::DeviceOptions;

/// Options of `coordinator report`.
#[derive(Debug, Args)]
pub struct ReportOptions {
    /// The run's directory, and perhaps another to compare it with
    #[arg(value_name = "RUN_DIR", num_args = 1..=2, required = true)]
    pub runs: Vec<PathBuf>,

    /// The HTML file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Pictures of samples at most, and as many of mistakes; 0 for none
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=200))]
    pub pictures: u32,

    /// What computes their predictions.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}
