//! A worker's process: its options, and the work itself.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tally_cli::logging::LogOptions;
use tally_transport::client::ClientAccess;
use tally_transport::connect;

use crate::device::DeviceOptions;
use crate::devices::{self, Devices};
use crate::program::WorkerProgram;
use crate::session::peers::PeerOptions;
use crate::session::{self, SessionOptions, WorkOutcome};
use crate::signals::{self, STOPPED_EARLY, Signals};

/// How long a worker that was asked to leave may take, whatever it waits for.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of a worker.
#[derive(Clone, Debug, Args)]
pub struct WorkOptions {
    /// The coordinator
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051", help_heading = "Cluster")]
    pub connect: String,

    /// Give up after so many seconds without a coordinator
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Cluster")]
    pub connect_timeout: u64,

    /// Never give up: wait for a coordinator for as long as it takes, and for the next one when
    /// a run is over or was stopped
    #[arg(long, conflicts_with = "connect_timeout", help_heading = "Cluster")]
    pub stay: bool,

    /// This worker's name, for people [default: host and process number]
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub name: Option<String>,

    /// Send gradients through sockets even to a coordinator on this machine
    #[arg(long, help_heading = "Cluster")]
    pub no_shared_memory: bool,

    /// Where other workers can open links to this one; a port of 0 is any port, and none only dials others [default: any
    /// port of all addresses]
    #[arg(long, value_name = "ADDRESS:PORT|none", value_parser = parse_listen, help_heading = "Cluster")]
    pub peer_listen: Option<PeerListen>,

    /// Where other workers reach this one [default: the address from which it connects, and the port it listens on]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_advertise, help_heading = "Cluster")]
    pub advertise: Option<String>,

    /// A name for the machine, or for whatever shares one link to the rest of the cluster: in a sharded run, workers
    /// of the same name add up among themselves before anything leaves it [default: the machine's boot id]
    #[arg(long, value_name = "NAME", value_parser = parse_machine, help_heading = "Cluster")]
    pub machine: Option<String>,

    /// Token and TLS.
    #[command(flatten)]
    pub access: ClientAccess,

    /// The device.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Run several workers, one process for each CUDA device of these numbers, such as 0,1,3, or all
    #[arg(long, value_name = "N,N…|all", conflicts_with = "device", help_heading = "Device")]
    pub devices: Option<Devices>,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Where a worker listens for links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerListen {
    /// Nowhere.
    None,
    /// Here.
    At(SocketAddr),
}

fn parse_listen(text: &str) -> Result<PeerListen, String> {
    let wrong = || "give an IP address and a port, such as 0.0.0.0:50052 or [::]:50052, or none".to_string();
    if text == "none" { Ok(PeerListen::None) } else { text.parse().map(PeerListen::At).map_err(|_| wrong()) }
}

fn parse_machine(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 64 {
        return Err("give a name of 1 to 64 bytes, the same to all workers of a machine".into());
    }
    Ok(text.into())
}

fn parse_advertise(text: &str) -> Result<String, String> {
    let host = connect::host(text).map_err(|_| "give HOST:PORT, such as 10.0.0.8:50052".to_string())?;
    let unspecified = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if unspecified {
        Err(format!("nobody can reach {host}; give the address at which others reach this worker"))
    } else {
        Ok(text.into())
    }
}

impl WorkOptions {
    /// The options of the worker's session.
    #[must_use]
    pub fn session(&self) -> SessionOptions {
        let defaults = SessionOptions::new(self.connect.clone());
        SessionOptions {
            access: self.access.clone(),
            connect_timeout: Duration::from_secs(self.connect_timeout),
            name: self.name.clone().unwrap_or_else(|| defaults.name.clone()),
            device: self.device.clone(),
            print_events: true,
            stay: self.stay,
            share_memory: !self.no_shared_memory,
            peers: PeerOptions {
                dial_only: self.peer_listen == Some(PeerListen::None),
                listen: self.peer_listen.and_then(|listen| match listen {
                    PeerListen::None => None,
                    PeerListen::At(address) => Some(address),
                }),
                advertise: self.advertise.clone(),
                machine: self.machine.clone(),
            },
            ..defaults
        }
    }
}

/// Works for a coordinator until the run is over or a signal (SIGINT, SIGTERM) asks this process to leave; with
/// `--devices`, starts a process for each device and waits for them.
///
/// # Errors
/// If there is no coordinator, if the coordinator refuses this worker, or if the device fails.
pub fn work(options: &WorkOptions, program: Arc<dyn WorkerProgram>) -> anyhow::Result<ExitCode> {
    options.log.init();
    devices::follow_parent();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen(devices::is_one_of_several())?;
        let leave = async {
            signals.asked().await;
        };
        // Workers that it has started get their own time first.
        let is_parent = options.devices.is_some() && !devices::is_one_of_several();
        let more = if is_parent { LEAVE_TIMEOUT / 2 } else { Duration::ZERO };
        tokio::spawn(exit_after_timeout(signals.clone(), LEAVE_TIMEOUT + more));
        match &options.devices {
            Some(devices) if is_parent => {
                let numbers = devices.numbers(&*program)?;
                devices::run(&numbers, &options.session().name, &options.device, leave).await
            }
            _ => session::run(options.session(), program, leave).await,
        }
    })?;
    // What it still waits for (a name to be resolved, a file) must not keep the process.
    runtime.shutdown_background();
    Ok(match outcome {
        WorkOutcome::RunOver => ExitCode::SUCCESS,
        WorkOutcome::LeftEarly => ExitCode::from(STOPPED_EARLY),
    })
}

/// Ends the process when it has not left in time, because it waits for something else (a token's file that is a pipe,
/// a file system that is gone). A worker holds nothing that would be lost.
async fn exit_after_timeout(signals: Signals, timeout: Duration) {
    signals.asked().await;
    tokio::time::sleep(timeout).await;
    signals::end(i32::from(STOPPED_EARLY));
}
