//! The command line of a Burn program.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tally_worker::WorkOptions;

use super::check::{self, CheckOptions};
use super::options::ProgramOptions;
use super::program::{BurnProgram, Program};
use crate::cli;
use crate::options::TrainOptions;

/// The subcommand that trains with workers in its own process.
const LOCAL: &str = "local";

#[derive(Debug, Subcommand)]
enum Command<A: Args> {
    /// Train: wait for workers, deal them samples, and sum their gradients every step
    Coordinator(Box<TrainOptions<ProgramOptions<A>>>),
    /// Train on this machine alone: a coordinator with workers in its own process
    Local(Box<TrainOptions<ProgramOptions<A>>>),
    /// Compute gradients for a coordinator
    Worker(Box<WorkOptions>),
    /// Compute a microbatch in several ways that must not differ, and say which promise a difference breaks
    Check(CheckOptions<A>),
    #[command(flatten)]
    Common(cli::Command),
}

/// The whole command line of `P`.
struct Cli<P: Program> {
    command: Command<P::Args>,
}

impl<P: Program> CommandFactory for Cli<P> {
    fn command() -> clap::Command {
        Command::<P::Args>::augment_subcommands(clap::Command::new(P::NAME))
            .version(concat!("on Tally ", env!("CARGO_PKG_VERSION")))
            .about(format!("Trains {} on one machine or many, with the same bits however many there are", P::NAME))
            .after_help(format!(
                "`{0} local --workers 2` trains here. `{0} coordinator --workers 4` needs four times `{0} worker \
                 --connect HOST:50051`.",
                P::NAME
            ))
            .max_term_width(100)
            .subcommand_required(true)
            .arg_required_else_help(true)
    }

    fn command_for_update() -> clap::Command {
        Self::command()
    }
}

impl<P: Program> FromArgMatches for Cli<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { command: Command::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.command.update_from_arg_matches(matches)
    }
}

impl<P: Program> Parser for Cli<P> {}

/// The `main` of a Burn program: does what the command line asks for.
///
/// ```sh
/// fashion local --workers 2 --epochs 3
/// fashion coordinator --workers 4
/// fashion worker --connect HOST:50051
/// ```
#[must_use]
pub fn main<P: Program>() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|name| name == LOCAL) {
        args.insert(2, "--local".into());
    }
    let cli = tally_cli::parse_from::<Cli<P>>(args, &[]);
    tally_cli::logging::exit_code(run::<P>(&cli.command))
}

fn run<P: Program>(command: &Command<P::Args>) -> anyhow::Result<ExitCode> {
    let program = Arc::new(BurnProgram::<P>::default());
    match command {
        Command::Coordinator(options) | Command::Local(options) => crate::train::run(&program, options),
        Command::Worker(options) => tally_worker::work(options, program),
        Command::Check(options) => {
            check::run::<P>(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Command::Common(command) => cli::run_command(&program, command),
    }
}
