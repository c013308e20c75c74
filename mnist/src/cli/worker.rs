//! The `worker` command: work, or one of the commands beside it.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tally::cli::print_line;
use tally_worker::WorkOptions;

use crate::MnistProgram;
use crate::evaluate::{self, EvaluateOptions};
use crate::predict::command::{self as predict, PredictOptions};

/// Computes gradients for a Tally cluster.
///
/// Connects to a coordinator, which says what to compute and sends the samples; nothing is
/// kept on this machine. It may join late, leave (Ctrl-C) and come back.
#[derive(Debug, Parser)]
#[command(name = "worker", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Work for a coordinator (the default), or one of these
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The options of work.
    #[command(flatten)]
    pub work: WorkOptions,
}

/// The commands beside work.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Test a checkpoint again, and print its losses and accuracies in one line
    Evaluate(EvaluateOptions),
    /// Predict the digit in pictures, and its sum and difference with a number
    Predict(PredictOptions),
}

/// Does what the command line asks for.
///
/// # Errors
/// In one line, with what to do.
pub fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => tally_worker::work(&cli.work, Arc::new(MnistProgram)),
        Some(Command::Evaluate(options)) => evaluate::run(options).and_then(|line| print_line(&line)),
        Some(Command::Predict(options)) => {
            predict::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
    }
}
