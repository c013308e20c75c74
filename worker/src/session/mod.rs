//! A worker's part in a cluster: find the coordinator, take part, come back after a loss.
//!
//! One session is one stay. [`handshake`] begins it. [`session_loop`] moves messages between the network and the
//! compute thread. [`compute`] owns the engine and works strictly in the order of steps. [`sender`] sends
//! contributions as credits allow; on the coordinator's machine, chunks lie in [`slots`] of shared memory and the
//! messages only name them. In sharded attempts [`peers`] has links to other workers. What these parts send each other is in
//! [`messages`]. [`timeline`] records spans of time. Tokio's threads never compute.

pub mod compute;
pub mod end;
pub mod handshake;
pub mod messages;
pub mod options;
pub mod peers;
pub mod reconnect_delay;
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
use tally_transport::slow_link;

use crate::program::WorkerProgram;
use end::{RetainedWorker, SessionEnd};
pub use options::SessionOptions;
use reconnect_delay::{ReconnectDelay, SessionRecord};

/// How a worker's work ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkOutcome {
    /// The coordinator ended the run.
    RunOver,
    /// The worker was asked to leave before that.
    LeftEarly,
}

async fn connect(options: &SessionOptions) -> Result<Connection, ConnectError> {
    match &options.local {
        Some(transport) => local::connect(transport.clone()).await,
        None => connect::connect(&options.connect, &options.access).await,
    }
}

/// Works for this program's runs until one is over, or, with [`stay`](SessionOptions::stay), until `leave` is ready, and
/// returns whether the last run that it took part in was over.
///
/// # Errors
/// If no coordinator was found within the time limit, where there is one, if the coordinator refused this worker, or
/// if this worker cannot compute.
pub async fn run(
    options: SessionOptions,
    program: Arc<dyn WorkerProgram>,
    leave: impl Future<Output = ()>,
) -> anyhow::Result<WorkOutcome> {
    tokio::pin!(leave);
    let mut retained = RetainedWorker::default();
    let mut delay = ReconnectDelay::default();
    let mut run = None;
    let mut alone_since = Instant::now();
    let mut reported = false;
    let mut outcome = WorkOutcome::LeftEarly;
    let mut denied = String::new();
    loop {
        let connection = tokio::select! {
            connection = connect(&options) => connection,
            () = &mut leave => return Ok(outcome),
        };
        let reason = match connection {
            Ok(connection) => {
                let (welcomed, since) = (&mut false, Instant::now());
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
                    if retained.steps > 0 {
                        outcome = WorkOutcome::LeftEarly;
                    }
                    alone_since = Instant::now();
                    // Another coordinator, or the same one started again: earlier sessions say nothing about it.
                    if std::mem::replace(&mut run, retained.run) != retained.run {
                        delay = ReconnectDelay::default();
                    }
                    denied.clear();
                }
                let mut lost = |reason: String, evicted: bool| {
                    // A coordinator that answers but never lets this worker in is reported once, below.
                    if *welcomed {
                        let session =
                            SessionRecord { steps: retained.steps, duration: since.elapsed(), evicted };
                        let unproductive = delay.ended(session);
                        let next = next_try(unproductive, delay.next(), &retained);
                        options.report(&format!("lost the coordinator: {reason}; {next}"));
                        reported = true;
                    }
                    reason
                };
                match end {
                    SessionEnd::Finished { reason, stopped } if options.stay => {
                        options.report(&format!("finished: {reason}; waiting for the next coordinator"));
                        (reported, delay) = (true, ReconnectDelay::default());
                        outcome = if stopped { WorkOutcome::LeftEarly } else { WorkOutcome::RunOver };
                        reason
                    }
                    SessionEnd::Finished { reason, .. } => {
                        options.report(&format!("finished: {reason}"));
                        return Ok(WorkOutcome::RunOver);
                    }
                    SessionEnd::Left => {
                        options.report("left the cluster");
                        return Ok(WorkOutcome::LeftEarly);
                    }
                    SessionEnd::Failed(reason) => bail!("{reason}"),
                    SessionEnd::Denied(reason) if options.stay => {
                        if denied != reason {
                            options.report(&format!(
                                "not let in at {}: {reason}; trying again",
                                options.connect
                            ));
                            denied.clone_from(&reason);
                            reported = true;
                        }
                        reason
                    }
                    SessionEnd::Refused(reason) | SessionEnd::Denied(reason) => {
                        bail!("{} refused this worker: {reason}", options.connect)
                    }
                    SessionEnd::Lost(reason) => lost(reason, false),
                    SessionEnd::Evicted(reason) => lost(format!("this worker was sent away: {reason}"), true),
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
            () = tokio::time::sleep(delay.advance()) => {}
            () = &mut leave => return Ok(outcome),
        }
    }
}

/// Tells when the next try comes, and the likely cause after the second unproductive session in a row.
fn next_try(unproductive: u32, delay: Duration, retained: &RetainedWorker) -> String {
    if unproductive < 2 {
        return "trying again".into();
    }
    let state_bytes = retained.engine.as_ref().map_or(0, |engine| 8 * engine.manifest().len());
    format!(
        "{unproductive} sessions in a row ended before a step was done: {}; trying again in {} s",
        slow_link::likely_cause(state_bytes),
        delay.as_secs()
    )
}
