//! Many workers in one process. Each has its own connection, thread for it and thread to compute, as a
//! process of its own would; only the program's memory is there once.

use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use tally_mnist::MnistProgram;
use tally_worker::device::{BackendChoice, DeviceOptions};
use tally_worker::session::{self, SessionOptions};

/// Works until the run is over.
///
/// # Errors
/// If a worker can't be started or can't go on.
pub fn work(connect: &str, workers: usize) -> anyhow::Result<()> {
    let started: Vec<_> = (0..workers)
        .map(|number| {
            let options = SessionOptions {
                name: format!("swarm-{number}"),
                device: DeviceOptions {
                    backend: BackendChoice::Cpu,
                    threads: Some(1),
                    ..DeviceOptions::default()
                },
                share_memory: false,
                ..SessionOptions::new(connect.to_owned())
            };
            let work = move || -> anyhow::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime
                    .block_on(session::run(options, Arc::new(MnistProgram), std::future::pending()))
                    .map(drop)
            };
            thread::Builder::new().name("net".into()).spawn(work).context("cannot start a worker's thread")
        })
        .collect::<Result<_, _>>()?;
    for worker in started {
        worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    Ok(())
}
