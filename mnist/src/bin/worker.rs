//! The `worker` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tally_mnist::cli::worker::{Cli, run};

fn main() -> ExitCode {
    tally_cli::logging::exit_code(run(&tally_cli::parse::<Cli>(&[])))
}
