//! The `coordinator` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tally_coordinator::cli::{Cli, Command, health, plan, report, samples, schedule, status, verify};
use tally_coordinator::launch;

fn main() -> ExitCode {
    let cli = tally_cli::parse::<Cli>(&[tally_cli::command::<tally_worker::cli::Cli>()]);
    let result = match &cli.command {
        None => launch::run(&cli.train),
        Some(Command::Health(options)) => health::run(options).map(say),
        Some(Command::Plan(options)) => {
            plan::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Report(options)) => report::run(options).map(say),
        Some(Command::Samples(options)) => samples::run(options).map(say),
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
            .map(|text| say(text.trim_end())),
    };
    tally_worker::logging::exit_code(result)
}

/// What a command has to say, on standard output.
#[allow(clippy::print_stdout)]
fn say(text: impl AsRef<str>) -> ExitCode {
    println!("{}", text.as_ref());
    ExitCode::SUCCESS
}
