//! Options from the command line, the environment and a TOML file, for both binaries.
//!
//! Every long option of every command can be given in three places, which are looked at in this order: the command
//! line, the environment (`--batch-size` is `TALLY_BATCH_SIZE`), and the file that `--config` or `TALLY_CONFIG` names
//! (`batch-size = 64`). No file is looked for. Values of lower layers are appended to the command line as arguments,
//! so clap's own parsers, `requires` and `conflicts_with` check a value in the same way wherever it is from. An error
//! says where that is.
//!
//! This crate knows clap's tree of commands and nothing of training: an option that a binary declares has its
//! variable and its key without further code. [`layers`] merges; [`mod@file`] and [`environment`] read; [`mod@print`]
//! prints the result; [`documents`] makes completions and man pages; [`output`] is how both programs say anything.
//!
//! [`logging`] has the options for logs, and the exit code of a command.
//!
//! Secrets are not options: tokens come from files or variables of their own, and nothing here reads those.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::exit;

use clap::{Arg, ArgAction, ArgMatches, Command, Parser, value_parser};

pub mod documents;
pub mod environment;
pub mod error;
pub mod file;
mod flags;
pub mod given;
pub mod layers;
pub mod logging;
pub mod option;
pub mod output;
pub mod print;
mod similar;

pub use environment::Environment;
pub use error::ConfigError;
use output::Level;

/// The programs that may share a file, each with a table of its own.
pub const PROGRAMS: [&str; 2] = ["coordinator", "worker"];

/// The exit code of a command line, variable or file that cannot be used: clap's own.
const USAGE: i32 = 2;

const HEADING: &str = "Configuration";
const CONFIG: &str = "config";
const PRINT_CONFIG: &str = "print-config";

const ELSEWHERE: &str = "Every option can also be given in the environment (--log-level as TALLY_LOG_LEVEL) or in a \
                         TOML file (log-level = \"warn\" under the command's name); the command line is asked first, \
                         the file last.";

/// The options of the process, from all layers. An option that cannot be used ends the process with the reason, and
/// so do `--help`, `--print-config`, and the commands that make completions and man pages once they are done.
/// `beside` are other programs that may share the environment, as far as this one knows them: their variables are not
/// taken for misspelt ones.
#[must_use]
pub fn parse<C: Parser>(beside: &[Command]) -> C {
    let command = command::<C>();
    let environment = Environment::of_the_process().beside(&command, beside);
    let parsed = options(&command, std::env::args_os().collect(), &environment);
    match parsed.and_then(|matches| Ok(matches.map(|matches| C::from_arg_matches(&matches)).transpose()?)) {
        Ok(Some(options)) => options,
        Ok(None) => leave(0),
        Err(ConfigError::Arguments(error)) => error.exit(),
        Err(error) => {
            output::note(Level::Error, &error.to_string());
            leave(USAGE)
        }
    }
}

/// The tree of commands of `C`, with what this crate adds to it.
#[must_use]
pub fn command<C: Parser>() -> Command {
    fn add(command: Command) -> Command {
        command
            .arg(
                Arg::new(CONFIG)
                    .long(CONFIG)
                    .value_name("FILE")
                    .value_parser(value_parser!(std::path::PathBuf))
                    .help_heading(HEADING)
                    .help("A TOML file with options, heeded after the command line and the environment [default: the variable TALLY_CONFIG, if it is set]"),
            )
            .arg(
                Arg::new(PRINT_CONFIG)
                    .long(PRINT_CONFIG)
                    .action(ArgAction::SetTrue)
                    .help_heading(HEADING)
                    .help("Print the options that would be in force and where each is from, as such a file, and do nothing else"),
            )
            .after_help(ELSEWHERE)
            .mut_subcommands(add)
    }
    documents::add(add(C::command()))
}

/// The options in force; none if something else was asked for, and is done.
fn options(
    command: &Command,
    args: Vec<OsString>,
    environment: &Environment,
) -> Result<Option<ArgMatches>, ConfigError> {
    let resolved = layers::resolve(command, args, environment)?;
    if wants_json(&resolved.matches) {
        output::as_json();
    }
    for warning in &resolved.warnings {
        output::note(Level::Warn, warning);
    }
    if resolved.print {
        documents::write_out(print::print(command, &resolved)?.as_bytes())?;
        return Ok(None);
    }
    let made = documents::make(command, &resolved.matches)?;
    Ok((!made).then_some(resolved.matches))
}

/// Whether the log is to be one of JSON objects, in which a warning about the options is one as well.
fn wants_json(matches: &ArgMatches) -> bool {
    let mut in_play = matches;
    while let Some((_, inner)) = in_play.subcommand() {
        in_play = inner;
    }
    let format = in_play.try_get_raw("log_format").ok().flatten().and_then(Iterator::last);
    format.is_some_and(|format| format == "json")
}

/// Ends the process, with all said that could be.
fn leave(code: i32) -> ! {
    output::flush();
    exit(code)
}
