//! The `coordinator` command: train, or one of the commands beside it.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tally::cli::print_line;
use tally::options::TrainOptions;

use super::{samples, schedule};
use crate::MnistProgram;
use crate::program::MnistOptions;

/// Trains one network on many machines, with the same bits however many there are.
///
/// Waits for workers, deals them samples, sums their gradients every step and hands the
/// sum back. `coordinator --workers 4` needs four times `worker --connect HOST:50051`;
/// with --local it needs nothing else.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
// What this program's defaults are.
#[command(
    mut_arg("epochs", |arg| arg.help("Epochs to train [default: 19]")),
    mut_arg("batch_size", |arg| arg.help("Samples of a step, over all workers [default: 16, or 64 with --recipe original]")),
    mut_arg("microbatches", |arg| arg.help(
        "Microbatches that a step is cut into: a power of two, fixed for the run. The number limits how many workers can \
         compute at once, and decides the bits of the trained model [default: 8]"
    )),
    mut_arg("learning_rate", |arg| arg.help(
        "The learning rate at its peak [default: 0.05; 0.01 with --recipe original or --optimizer rmsprop, 0.001 with adam and \
         adamw, 0.0001 with lion]"
    )),
    mut_arg("optimizer", |arg| arg.help("The optimizer: sgd, adam, adamw, rmsprop or lion [default: sgd]")),
    mut_arg("momentum", |arg| arg.help(
        "sgd, rmsprop: momentum, as PyTorch defines it [default: 0.9 with sgd, 0 with rmsprop]"
    )),
    mut_arg("clip_norm", |arg| arg.help(
        "Clip the gradient's global norm to this; `none` switches it off [default: 2, or none with --recipe original]"
    )),
    mut_arg("warmup_steps", |arg| arg.help(
        "Steps over which the learning rate rises [default: 400, at most a fifth of the run; 0 with --recipe original]"
    )),
    mut_arg("lr_schedule", |arg| arg.help(
        "The learning rate after the warm-up: constant, cosine or linear [default: linear, or constant with --recipe original]"
    ))
)]
pub struct Cli {
    /// Train (the default), or one of these
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The options of training.
    #[command(flatten)]
    pub train: TrainOptions<MnistOptions>,
}

/// The commands beside training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Those of every program.
    #[command(flatten)]
    Common(tally::cli::Command),
    /// Draw samples of the data, with a network's answers if there is one
    Samples(samples::SamplesOptions),
    /// Print an epoch's order and random numbers, a line of JSON a step
    Schedule(schedule::ScheduleOptions),
}

/// Does what the command line asks for.
///
/// # Errors
/// In one line, with what to do.
pub fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let program = Arc::new(MnistProgram);
    match &cli.command {
        None => tally::cli::run(&program, None, &cli.train),
        Some(Command::Common(command)) => tally::cli::run(&program, Some(command), &cli.train),
        Some(Command::Samples(options)) => samples::run(options).and_then(|text| print_line(&text)),
        Some(Command::Schedule(options)) => {
            schedule::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
    }
}
