//! The `worker` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tally_cli::logging;
use tally_mnist::MnistProgram;
use tally_mnist::evaluate::{self, EvaluateOptions};
use tally_mnist::predict::command::{self as predict, PredictOptions};
use tally_worker::WorkOptions;

/// Computes gradients for a Tally cluster.
///
/// Connects to a coordinator, which says what to compute and sends the samples; nothing is
/// kept on this machine. It may join late, leave (Ctrl-C) and come back.
#[derive(Debug, Parser)]
#[command(name = "worker", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Work for a coordinator (the default), or one of these
    #[command(subcommand)]
    command: Option<Command>,

    /// The options of work.
    #[command(flatten)]
    work: WorkOptions,
}

/// The commands beside work.
#[derive(Debug, Subcommand)]
enum Command {
    /// Print the test line of a checkpoint
    Evaluate(EvaluateOptions),
    /// Answer pictures of digits
    Predict(PredictOptions),
}

fn main() -> ExitCode {
    let cli = tally_cli::parse::<Cli>(&[]);
    logging::exit_code(match &cli.command {
        None => tally_worker::work(&cli.work, Arc::new(MnistProgram)),
        Some(Command::Evaluate(options)) => evaluate::run(options).map(|line| {
            #[allow(clippy::print_stdout)]
            {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }),
        Some(Command::Predict(options)) => {
            predict::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
    })
}
