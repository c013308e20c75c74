//! The `worker` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tally_worker::cli::Cli;
use tally_worker::{logging, work};

fn main() -> ExitCode {
    logging::exit_code(work::run(&tally_cli::parse::<Cli>(&[])))
}
