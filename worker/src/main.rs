//! The `worker` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tally_worker::cli::{Cli, Command, WorkOptions};
use tally_worker::{evaluate, logging, predict, session};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = tally_cli::parse::<Cli>();
    logging::exit_code(match &cli.command {
        None => work(&cli.work),
        Some(Command::Evaluate(options)) => evaluate::run(options).map(|line| {
            #[allow(clippy::print_stdout)]
            {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }),
        Some(Command::Predict(options)) => {
            predict::command::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
    })
}

fn work(options: &WorkOptions) -> anyhow::Result<ExitCode> {
    options.log.init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let leave = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        session::run(options.session(), leave).await
    })?;
    Ok(ExitCode::SUCCESS)
}
