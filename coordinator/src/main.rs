//! The `coordinator` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use tally_coordinator::cli::{Cli, Command, schedule, status, verify};
use tally_coordinator::launch;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None => launch::run(&cli.train),
        Some(Command::Schedule(options)) => {
            schedule::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Verify(options)) => {
            verify::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Status(options)) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(status::run(options)))
            .map(|text| {
                #[allow(clippy::print_stdout)]
                {
                    print!("{text}");
                }
                ExitCode::SUCCESS
            }),
    };
    tally_worker::logging::exit_code(result)
}
