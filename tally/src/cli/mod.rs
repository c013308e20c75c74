//! The command lines of a program: training, and the commands beside it.

pub mod health;
pub mod plan;
pub mod report;
pub mod status;
pub mod verify;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;
use tally_cli::output;

use crate::options::{ReportOptions, TrainOptions};
use crate::program::CoordinatorProgram;
use crate::train;

/// The commands beside training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask whether the coordinator on this machine is well: exit code 0 if it is, else 1; for container engines
    Health(health::HealthOptions),
    /// Say what a cluster would do, before there is one: a step's time, its parts, what limits it
    Plan(Box<plan::PlanOptions>),
    /// Write a report of a run, or of two runs compared, as one HTML file
    Report(ReportOptions),
    /// Show what a running cluster is doing
    Status(status::StatusOptions),
    /// Compute steps of a run again, on a device like that of its workers, and compare them with its journal
    Verify(verify::VerifyOptions),
}

/// Trains, or does what the command says.
///
/// # Errors
/// In one line, with what to do.
pub fn run<P: CoordinatorProgram>(
    program: &Arc<P>,
    command: Option<&Command>,
    options: &TrainOptions<P::Options>,
) -> anyhow::Result<ExitCode> {
    command.map_or_else(|| train::run(program, options), |command| run_command(program, command))
}

/// Does what the command says.
///
/// # Errors
/// In one line, with what to do.
pub fn run_command<P: CoordinatorProgram>(program: &Arc<P>, command: &Command) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Health(options) => {
            drop(out);
            health::run(options).and_then(|text| print_line(&text))
        }
        Command::Plan(options) => plan::run(&**program, options, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Report(options) => {
            drop(out);
            report::run(&**program, options).and_then(|text| print_line(&text))
        }
        Command::Verify(options) => verify::run(&**program, options, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Status(options) => {
            drop(out);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(status::run(options)).and_then(|text| print_line(text.trim_end()))
        }
    }
}

/// Refuses an output file whose name promises another format than `kind`.
///
/// # Errors
/// If it has an extension that is none of `endings`.
pub fn check_extension(out: &Path, kind: &str, endings: &[&str]) -> anyhow::Result<()> {
    let ending = out.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    anyhow::ensure!(
        ending.as_ref().is_none_or(|ending| endings.contains(&ending.as_str())),
        "--out {}: the output is {kind}; give it a name that ends in .{}",
        out.display(),
        endings[0]
    );
    Ok(())
}

/// Prints the result of a command on standard output.
///
/// # Errors
/// If standard output does not take it.
pub fn print_line(text: &str) -> anyhow::Result<ExitCode> {
    output::print(text).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
