//! The `coordinator` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tally_mnist::cli::coordinator::{Cli, run};
use tally_mnist::cli::worker;

fn main() -> ExitCode {
    // Both read one configuration file, so each knows the other's options.
    let cli = tally_cli::parse::<Cli>(&[tally_cli::command::<worker::Cli>()]);
    tally_cli::logging::exit_code(run(&cli))
}
