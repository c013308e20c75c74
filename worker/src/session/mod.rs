//! A worker's life in a cluster: find the coordinator, take part, come back after a loss.
//!
//! One session is one stay. [`handshake`] begins it; [`pump`] moves messages between the network and the compute
//! thread; [`compute`] owns the engine and works strictly in the order of steps;
//! [`sender`] sends contributions as credits allow, or, on the coordinator's machine, only
//! says in which of the shared [`places`] they lie. [`timeline`] keeps what was done when.
//! Tokio's threads never compute.

pub mod compute;
pub mod connect;
pub mod handshake;
pub mod link;
pub mod places;
pub mod pump;
pub mod sender;
pub mod timeline;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tally_exact::digest::Digest;

use crate::access::client::ClientAccess;
use crate::engine::Engine;
use crate::engine::backend::BackendChoice;
use crate::engine::burn::Precision;
use connect::{ConnectError, Connection};
use link::Link;

/// Waits between two tries grow from this …
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// … to this, so that a restarted coordinator finds its workers back soon.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// `HOST:PORT` of the coordinator.
    pub connect: String,
    /// What to show it, and whom to believe.
    pub access: ClientAccess,
    /// Give up after so long without one.
    pub connect_timeout: Duration,
    /// Never give up waiting for one, and wait for the next when a run is over.
    pub stay: bool,
    /// For people.
    pub name: String,
    /// What to compute with.
    pub backend: BackendChoice,
    /// Which device of it.
    pub device: usize,
    /// What the network is computed in.
    pub precision: Precision,
    /// Threads, on a CPU.
    pub threads: usize,
    /// Print what happens on standard error.
    pub tell: bool,
    /// Share memory with a coordinator on the same machine.
    pub share_memory: bool,
    /// The way to a coordinator in the same process.
    pub link: Option<Arc<dyn Link>>,
}

impl WorkerOptions {
    /// A worker for this coordinator, with defaults for the rest.
    #[must_use]
    pub fn new(connect: String) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            connect,
            access: ClientAccess::default(),
            connect_timeout: Duration::from_secs(60),
            stay: false,
            name: format!("{host}-{}", std::process::id()),
            backend: BackendChoice::Auto,
            device: 0,
            precision: Precision::default(),
            threads: 1,
            tell: false,
            share_memory: true,
            link: None,
        }
    }

    fn tell(&self, text: &str) {
        if self.tell {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{text}");
            }
        } else {
            tracing::info!(worker = self.name, "{text}");
        }
    }
}

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The run is over.
    Finished(String),
    /// The coordinator does not take this worker, now or later.
    Refused(String),
    /// It, or a proxy on the way to it, does not let in who shows what this worker shows, which may change.
    Denied(String),
    /// This worker cannot compute, now or later.
    Failed(String),
    /// The connection or the coordinator is gone, or sent this worker away: try again.
    Lost(String),
    /// The user asked to leave.
    Left,
}

/// The engine of the last session, kept for the next if it fits.
#[derive(Default)]
pub struct Kept {
    /// What it was built for.
    pub spec: Option<(String, String)>,
    /// The engine.
    pub engine: Option<Box<dyn Engine>>,
    /// The run it took part in last, and the newest incarnation of its coordinator.
    pub run: Option<(u64, u64)>,
    /// Steps of that run whose state the engine holds, newest first, with their digests.
    pub held: Vec<(u64, Digest)>,
}

async fn reach(options: &WorkerOptions) -> Result<Connection, ConnectError> {
    match &options.link {
        Some(link) => connect::within(link.clone()).await,
        None => connect::connect(&options.connect, &options.access).await,
    }
}

/// Works until the run is over or `leave` is ready.
///
/// # Errors
/// If no coordinator was found within the time limit, where there is one, or it refused this worker.
pub async fn run(options: WorkerOptions, leave: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(leave);
    let mut kept = Kept::default();
    let mut wait = FIRST_WAIT;
    let mut alone_since = Instant::now();
    let mut told = false;
    let mut denied = String::new();
    loop {
        let connection = tokio::select! {
            connection = reach(&options) => connection,
            () = &mut leave => return Ok(()),
        };
        let reason = match connection {
            Ok(connection) => {
                let welcomed = &mut false;
                let ended = pump::session(&options, connection, &mut kept, welcomed, leave.as_mut()).await;
                if *welcomed {
                    alone_since = Instant::now();
                    wait = FIRST_WAIT;
                    denied.clear();
                }
                match ended {
                    Ended::Finished(reason) if options.stay => {
                        options.tell(&format!("finished: {reason}; waiting for the next coordinator"));
                        told = true;
                        reason
                    }
                    Ended::Finished(reason) => {
                        options.tell(&format!("finished: {reason}"));
                        return Ok(());
                    }
                    Ended::Left => {
                        options.tell("left the cluster");
                        return Ok(());
                    }
                    Ended::Failed(reason) => bail!("{reason}"),
                    Ended::Denied(reason) if options.stay => {
                        if denied != reason {
                            options
                                .tell(&format!("not let in at {}: {reason}; trying again", options.connect));
                            denied.clone_from(&reason);
                            told = true;
                        }
                        reason
                    }
                    Ended::Refused(reason) | Ended::Denied(reason) => {
                        bail!("{} refused this worker: {reason}", options.connect)
                    }
                    Ended::Lost(reason) => {
                        // Something that answers but never lets us in is told of once, below.
                        if *welcomed {
                            options.tell(&format!("lost the coordinator: {reason}; trying again"));
                            told = true;
                        }
                        reason
                    }
                }
            }
            Err(ConnectError::Access(error)) if !told => return Err(error),
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
        if !told {
            options.tell(&format!("no coordinator at {} yet ({reason}); trying again", options.connect));
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = &mut leave => return Ok(()),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
