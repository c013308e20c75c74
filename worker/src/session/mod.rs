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
pub mod pause;
pub mod places;
pub mod pump;
pub mod sender;
pub mod timeline;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tally_cli::output::{self, Level};
use tally_exact::digest::Digest;

use crate::access::client::ClientAccess;
use crate::engine::Engine;
use crate::engine::backend::BackendChoice;
use crate::engine::burn::Precision;
use connect::{ConnectError, Connection};
use link::Link;
use pause::{Pause, Stay};

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
            output::note(Level::Info, text);
        } else {
            tracing::info!(worker = self.name, "{text}");
        }
    }
}

/// How a worker's work ended, where it ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The coordinator ended the run.
    Done,
    /// The worker was told to leave before that.
    Early,
}

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// The run is over, or was stopped before its end.
    Finished {
        /// In words.
        reason: String,
        /// It was stopped.
        stopped: bool,
    },
    /// The coordinator does not take this worker, now or later.
    Refused(String),
    /// This worker cannot compute, now or later.
    Failed(String),
    /// The connection or the coordinator is gone: try again.
    Lost(String),
    /// The coordinator sent this worker away, which may try again.
    SentAway(String),
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
    /// Steps that it confirmed in the last session.
    pub steps: u64,
}

async fn reach(options: &WorkerOptions) -> Result<Connection, ConnectError> {
    match &options.link {
        Some(link) => connect::within(link.clone()).await,
        None => connect::connect(&options.connect, &options.access).await,
    }
}

/// Works until the run is over or `leave` is ready, and returns which of them it was.
///
/// # Errors
/// If no coordinator was found within the time limit, where there is one, or it refused this worker.
pub async fn run(options: WorkerOptions, leave: impl Future<Output = ()>) -> anyhow::Result<Parting> {
    tokio::pin!(leave);
    let mut kept = Kept::default();
    let mut pause = Pause::default();
    let mut run = None;
    let mut alone_since = Instant::now();
    let mut told = false;
    let mut parting = Parting::Early;
    loop {
        let connection = tokio::select! {
            connection = reach(&options) => connection,
            () = &mut leave => return Ok(parting),
        };
        let reason = match connection {
            Ok(connection) => {
                let (welcomed, since) = (&mut false, Instant::now());
                let ended = pump::session(&options, connection, &mut kept, welcomed, leave.as_mut()).await;
                if *welcomed {
                    if kept.steps > 0 {
                        parting = Parting::Early;
                    }
                    alone_since = Instant::now();
                    // Another coordinator, or the same started anew: what was before says nothing.
                    if std::mem::replace(&mut run, kept.run) != kept.run {
                        pause = Pause::default();
                    }
                }
                let mut lost = |reason: String, sent_away: bool| {
                    // Something that answers but never lets us in is told of once, below.
                    if *welcomed {
                        let stay = Stay { steps: kept.steps, lasted: since.elapsed(), sent_away };
                        let again = again(pause.stayed(stay), pause.next(), &kept);
                        options.tell(&format!("lost the coordinator: {reason}; {again}"));
                        told = true;
                    }
                    reason
                };
                match ended {
                    Ended::Finished { reason, stopped } if options.stay => {
                        options.tell(&format!("finished: {reason}; waiting for the next coordinator"));
                        (told, pause) = (true, Pause::default());
                        parting = if stopped { Parting::Early } else { Parting::Done };
                        reason
                    }
                    Ended::Finished { reason, .. } => {
                        options.tell(&format!("finished: {reason}"));
                        return Ok(Parting::Done);
                    }
                    Ended::Left => {
                        options.tell("left the cluster");
                        return Ok(Parting::Early);
                    }
                    Ended::Failed(reason) => bail!("{reason}"),
                    Ended::Refused(reason) => bail!("{} refused this worker: {reason}", options.connect),
                    Ended::Lost(reason) => lost(reason, false),
                    Ended::SentAway(reason) => lost(format!("it sent us away: {reason}"), true),
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
            () = tokio::time::sleep(pause.unanswered()) => {}
            () = &mut leave => return Ok(parting),
        }
    }
}

/// What is said of the next try, after so many stays in vain.
fn again(in_vain: u32, pause: Duration, kept: &Kept) -> String {
    if in_vain < 2 {
        return "trying again".into();
    }
    let state = kept.engine.as_ref().map_or(0, |engine| 8 * engine.manifest().len());
    format!(
        "this was stay {in_vain} in a row of which nothing came: {}; trying again in {} s",
        pause::cause(state),
        pause.as_secs()
    )
}
