//! A worker's part in a cluster: find the coordinator, take part, come back after a loss.
//!
//! One session is one stay. [`handshake`] begins it. [`session_loop`] moves messages between the network and the
//! compute thread. [`compute`] owns the engine and works strictly in the order of steps. [`sender`] sends
//! contributions as credits allow; on the coordinator's machine, chunks lie in [`slots`] of shared memory and the
//! messages only name them. [`timeline`] records spans of time. Tokio's threads never compute.

pub mod compute;
pub mod end;
pub mod handshake;
pub mod options;
pub mod sender;
pub mod session_loop;
pub mod slots;
pub mod timeline;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tally_transport::connect::{self, ConnectError, Connection};
use tally_transport::local;

use crate::program::WorkerProgram;
use end::{RetainedWorker, SessionEnd};
pub use options::SessionOptions;

/// Waits between two tries grow from this …
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// … to this, so that workers soon find a coordinator that was restarted.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

async fn connect(options: &SessionOptions) -> Result<Connection, ConnectError> {
    match &options.local {
        Some(transport) => local::connect(transport.clone()).await,
        None => connect::connect(&options.connect, &options.access).await,
    }
}

/// Works for this program's runs until one is over, or, with [`stay`](SessionOptions::stay), until `leave` is ready.
///
/// # Errors
/// If no coordinator was found within the time limit, where there is one, if the coordinator refused this worker, or
/// if this worker cannot compute.
pub async fn run(
    options: SessionOptions,
    program: Arc<dyn WorkerProgram>,
    leave: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(leave);
    let mut retained = RetainedWorker::default();
    let mut wait = FIRST_WAIT;
    let mut alone_since = Instant::now();
    let mut reported = false;
    loop {
        let connection = tokio::select! {
            connection = connect(&options) => connection,
            () = &mut leave => return Ok(()),
        };
        let reason = match connection {
            Ok(connection) => {
                let welcomed = &mut false;
                let end = session_loop::run(
                    &options,
                    &program,
                    connection,
                    &mut retained,
                    welcomed,
                    leave.as_mut(),
                );
                let end = end.await;
                if *welcomed {
                    alone_since = Instant::now();
                    wait = FIRST_WAIT;
                }
                match end {
                    SessionEnd::Finished(reason) if options.stay => {
                        options.report(&format!("finished: {reason}; waiting for the next coordinator"));
                        reported = true;
                        reason
                    }
                    SessionEnd::Finished(reason) => {
                        options.report(&format!("finished: {reason}"));
                        return Ok(());
                    }
                    SessionEnd::Left => {
                        options.report("left the cluster");
                        return Ok(());
                    }
                    SessionEnd::Failed(reason) => bail!("{reason}"),
                    SessionEnd::Refused(reason) => {
                        bail!("{} refused this worker: {reason}", options.connect)
                    }
                    SessionEnd::Lost(reason) => {
                        // A coordinator that answers but never lets this worker in is reported once, below.
                        if *welcomed {
                            options.report(&format!("lost the coordinator: {reason}; trying again"));
                            reported = true;
                        }
                        reason
                    }
                }
            }
            Err(ConnectError::Access(error)) if !reported => return Err(error),
            Err(reason @ ConnectError::Address { .. }) => return Err(reason.into()),
            Err(reason) => reason.to_string(),
        };
        if !options.stay && alone_since.elapsed() >= options.connect_timeout {
            bail!(
                "no coordinator at {} for {} s ({reason}); start it, check the address, or raise --connect-timeout",
                options.connect,
                options.connect_timeout.as_secs()
            );
        }
        if !reported {
            options.report(&format!("no coordinator at {} yet ({reason}); trying again", options.connect));
            reported = true;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = &mut leave => return Ok(()),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
