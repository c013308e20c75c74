//! Completions for shells, and man pages: what packages install beside the binaries.
//!
//! Both are made from the tree of commands, so that they say what `--help` says.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::error::ConfigError;

const COMPLETIONS: &str = "completions";
const MAN: &str = "man";
const HELP: &str = "help";
const SHELL: &str = "shell";
const DIRECTORY: &str = "directory";

/// Whether a command of this name only describes the program, and has no options to configure.
#[must_use]
pub fn is_about_the_program(name: &str) -> bool {
    [COMPLETIONS, MAN, HELP].contains(&name)
}

/// Adds the commands that make them.
pub(crate) fn add(command: Command) -> Command {
    command
        .subcommand(
            Command::new(COMPLETIONS)
                .about("Print completions for a shell")
                .arg(Arg::new(SHELL).value_name("SHELL").required(true).value_parser(value_parser!(Shell))),
        )
        .subcommand(
            Command::new(MAN).about("Write a man page for each command into a directory").arg(
                Arg::new(DIRECTORY).value_name("DIR").required(true).value_parser(value_parser!(PathBuf)),
            ),
        )
}

/// Makes the document that the arguments ask for. Whether they ask for one.
///
/// # Errors
/// If it can't be written.
pub(crate) fn make(command: &Command, matches: &ArgMatches) -> Result<bool, ConfigError> {
    match matches.subcommand() {
        Some((COMPLETIONS, matches)) => {
            let Some(shell) = matches.get_one::<Shell>(SHELL) else { return Ok(false) };
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command.clone(), command.get_name(), &mut script);
            write_out(&script)?;
        }
        Some((MAN, matches)) => {
            let Some(directory) = matches.get_one::<PathBuf>(DIRECTORY) else { return Ok(false) };
            man_pages(command, directory).map_err(|source| ConfigError::Write {
                place: format!("man pages to {}", directory.display()),
                source,
            })?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn man_pages(command: &Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command.clone(), directory)
}

/// Writes to standard output. A closed pipe is not an error, because its reader has read enough.
///
/// # Errors
/// If it can't be written.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), ConfigError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(ConfigError::Write { place: "to standard output".into(), source })
        }
        _ => Ok(()),
    }
}
