//! Workers on threads of the coordinator's process. They speak the same gRPC as others, without a socket, and hand
//! their gradients over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tally_transport::local::LocalTransport;
use tally_worker::device::DeviceOptions;
use tally_worker::program::WorkerProgram;
use tally_worker::session::{self, SessionOptions};

/// Threads of each of `workers` workers on this machine's cores.
#[must_use]
pub fn share_of_cores(workers: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / workers).max(1)
}

/// Starts the workers; each has a thread for its connections and a pool to compute with. Where there are several
/// GPUs, they take turns.
///
/// # Errors
/// If a thread can't be started.
pub fn start(
    program: &Arc<dyn WorkerProgram>,
    workers: usize,
    address: SocketAddr,
    device: &DeviceOptions,
    transport: &Arc<dyn LocalTransport>,
) -> anyhow::Result<Vec<JoinHandle<anyhow::Result<()>>>> {
    // An unspecified address to listen on is reached by the loopback.
    let host = match address {
        SocketAddr::V4(a) if a.ip().is_unspecified() => format!("127.0.0.1:{}", a.port()),
        SocketAddr::V6(a) if a.ip().is_unspecified() => format!("[::1]:{}", a.port()),
        other => other.to_string(),
    };
    let devices = if device.backend.may_use_cuda() { program.cuda_devices().unwrap_or(1).max(1) } else { 1 };
    (1..=workers)
        .map(|number| {
            let options = SessionOptions {
                device: DeviceOptions { device: (number - 1) % devices, ..device.clone() },
                name: format!("local-{number}"),
                local: Some(transport.clone()),
                ..SessionOptions::new(host.clone())
            };
            let program = program.clone();
            let work = move || -> anyhow::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(session::run(options, program, std::future::pending())).map(drop)
            };
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(work)
                .with_context(|| format!("cannot start local worker {number}"))
        })
        .collect()
}
