//! What the `worker` binary does.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command, WorkOptions};
use crate::{devices, evaluate, predict, session};

/// Does what the command line asks for.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
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
    }
}

fn work(options: &WorkOptions) -> anyhow::Result<ExitCode> {
    options.log.init()?;
    devices::follow_parent();
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
        match &options.devices {
            Some(devices) if !devices::is_one_of_several() => devices::run(devices, options, leave).await,
            _ => session::run(options.session(), leave).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
