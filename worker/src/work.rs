//! What the `worker` binary does.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tally_cli::output;

use crate::cli::{Cli, Command, WorkOptions};
use crate::session::Parting;
use crate::signals::{self, STOPPED_EARLY, Signals};
use crate::{devices, evaluate, predict, session};

/// How long a worker that was told to leave may take, whatever it waits for.
const LEAVE: Duration = Duration::from_secs(10);

/// Does what the command line asks for.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => work(&cli.work),
        Some(Command::Evaluate(options)) => {
            output::print(&evaluate::run(options)?).context("cannot write to standard output")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Predict(options)) => {
            predict::command::run(options, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn work(options: &WorkOptions) -> anyhow::Result<ExitCode> {
    options.log.init()?;
    devices::follow_parent();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let parting = runtime.block_on(async {
        let signals = Signals::listen(devices::is_one_of_several())?;
        let leave = async {
            signals.asked().await;
        };
        let several = options.devices.as_ref().filter(|_| !devices::is_one_of_several());
        // Those that it has started have their own time for it first.
        tokio::spawn(leave_in_the_end(
            signals.clone(),
            LEAVE + several.map_or(Duration::ZERO, |_| LEAVE / 2),
        ));
        match several {
            Some(devices) => devices::run(devices, options, leave).await,
            None => session::run(options.session(), leave).await,
        }
    })?;
    // What it still waits for (a name to be resolved, a file) must not keep the process.
    runtime.shutdown_background();
    Ok(match parting {
        Parting::Done => ExitCode::SUCCESS,
        Parting::Early => ExitCode::from(STOPPED_EARLY),
    })
}

/// Nothing that a worker may wait for (a token's file that is a pipe, a file system that is gone) keeps it from
/// leaving when it was told to: it holds nothing that would be lost.
async fn leave_in_the_end(signals: Signals, most: Duration) {
    signals.asked().await;
    tokio::time::sleep(most).await;
    signals::end(i32::from(STOPPED_EARLY));
}
