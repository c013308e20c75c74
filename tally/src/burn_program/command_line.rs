//! The command line of a Burn program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tally_cli::output::Level;
use tally_worker::WorkOptions;

use super::bench::{self, BenchOptions};
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
    /// Time a step of Tally beside a step of plain Burn
    Bench(BenchOptions<A>),
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
    if let Some(name) = clash(&program_options::<P::Args>(), &command::<NoOptions>()) {
        tally_cli::output::note(
            Level::Error,
            &format!(
                "the program {} has an option --{name}, which Tally has as well: give it another name",
                P::NAME
            ),
        );
        tally_cli::output::flush();
        return ExitCode::FAILURE;
    }
    let cli = tally_cli::parse_from::<Cli<P>>(args, &[]);
    tally_cli::logging::exit_code(run::<P>(&cli.command))
}

/// No options of a program's own.
#[derive(Clone, Debug, Args)]
struct NoOptions {}

fn command<A: Args>() -> clap::Command {
    tally_cli::command_of(Command::<A>::augment_subcommands(clap::Command::new("program")))
}

fn program_options<A: Args>() -> clap::Command {
    A::augment_args(clap::Command::new("own"))
}

/// An option of `own` that a command of `tallys` has as well: clap would take one for the other.
fn clash(own: &clap::Command, tallys: &clap::Command) -> Option<String> {
    let names = |command: &clap::Command| -> Vec<String> {
        let arguments = command.get_arguments();
        arguments
            .flat_map(|arg| arg.get_long().into_iter().chain([arg.get_id().as_str()]))
            .map(|name| name.replace('_', "-"))
            .collect()
    };
    let taken: BTreeSet<String> =
        tallys.get_subcommands().filter(|c| takes_options(c)).flat_map(names).collect();
    names(own).into_iter().find(|name| taken.contains(name))
}

/// Whether a command takes the program's own options.
fn takes_options(command: &clap::Command) -> bool {
    ["coordinator", LOCAL, "check", "bench"].contains(&command.get_name())
}

fn run<P: Program>(command: &Command<P::Args>) -> anyhow::Result<ExitCode> {
    let program = Arc::new(BurnProgram::<P>::default());
    match command {
        Command::Coordinator(options) | Command::Local(options) => crate::train::run(&program, options),
        Command::Worker(options) => tally_worker::work(options, program),
        Command::Bench(options) => {
            bench::run::<P>(options, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS)
        }
        Command::Check(options) => {
            check::run::<P>(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Command::Common(command) => cli::run_command(&program, command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Args)]
    struct Clashing {
        #[arg(long)]
        batch_size: Option<u32>,
    }

    #[derive(Args)]
    struct Sound {
        #[arg(long)]
        width: Option<u32>,
    }

    #[test]
    fn an_option_that_tally_has_as_well_is_found() {
        let tallys = command::<NoOptions>();
        assert_eq!(clash(&program_options::<Clashing>(), &tallys).as_deref(), Some("batch-size"));
        assert_eq!(clash(&program_options::<Sound>(), &tallys), None);
    }
}
