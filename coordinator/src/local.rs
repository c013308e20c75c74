//! The local mode: workers on threads of this process. They speak the same gRPC on loopback,
//! but for their gradients, which are handed over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tally_worker::engine::backend::{self, BackendChoice};
use tally_worker::engine::burn::Precision;
use tally_worker::session::link::Link;
use tally_worker::session::{self, WorkerOptions};

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
    workers: usize,
    address: SocketAddr,
    backend: BackendChoice,
    precision: Precision,
    threads: usize,
    link: &Arc<dyn Link>,
) -> anyhow::Result<Vec<JoinHandle<anyhow::Result<()>>>> {
    // An unspecified address to listen on is reached by the loopback.
    let host = match address {
        SocketAddr::V4(a) if a.ip().is_unspecified() => format!("127.0.0.1:{}", a.port()),
        SocketAddr::V6(a) if a.ip().is_unspecified() => format!("[::1]:{}", a.port()),
        other => other.to_string(),
    };
    let devices = backend::devices(backend);
    (1..=workers)
        .map(|number| {
            let options = WorkerOptions {
                device: (number - 1) % devices,
                name: format!("local-{number}"),
                backend,
                precision,
                threads,
                link: Some(link.clone()),
                ..WorkerOptions::new(host.clone())
            };
            let work = move || -> anyhow::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(session::run(options, std::future::pending())).map(drop)
            };
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(work)
                .with_context(|| format!("cannot start local worker {number}"))
        })
        .collect()
}
