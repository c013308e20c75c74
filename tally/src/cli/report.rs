//! `coordinator report`: a run, or two compared, as one HTML file.

use std::path::PathBuf;

use clap::Args;
use maud::html;
use tally_cli::logging::{LogOptions, in_one_line};
use tally_monitor::report;
use tally_worker::device::DeviceOptions;

use crate::program::Program;

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

/// Writes the report and returns a line that describes it.
///
/// # Errors
/// If a directory holds no run, or the file can't be written.
pub fn run<P: Program>(program: &P, options: &ReportOptions) -> anyhow::Result<String> {
    options.log.init()?;
    let runs = report::read(&options.runs, &options.out)?;
    let mut sections = Vec::new();
    for run in &runs {
        match program.report_sections(&run.record, options) {
            Ok(own) if own.is_empty() => {}
            Ok(own) => sections.push(html! { h3 { (run.name) } @for section in &own { (section) } }),
            Err(error) => sections.push(html! { p.quiet { "No samples of " (run.name) ": " (in_one_line(&error)) } }),
        }
    }
    report::write(&runs, &sections, &options.out)
}
