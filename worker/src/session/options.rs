//! The options of a session.

use std::sync::Arc;
use std::time::Duration;

use tally_cli::output::{self, Level};
use tally_transport::client::ClientAccess;
use tally_transport::local::LocalTransport;

use super::peers::PeerOptions;
use crate::device::DeviceOptions;

/// The options of a worker's sessions.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// `HOST:PORT` of the coordinator.
    pub connect: String,
    /// Token and TLS.
    pub access: ClientAccess,
    /// Give up after so long without a coordinator.
    pub connect_timeout: Duration,
    /// Never give up waiting for a coordinator, and wait for the next one when a run is over.
    pub stay: bool,
    /// The worker's name, for people.
    pub name: String,
    /// The device that the engine is on.
    pub device: DeviceOptions,
    /// Print events on standard error, instead of logging them.
    pub print_events: bool,
    /// Share memory with a coordinator on the same machine.
    pub share_memory: bool,
    /// Links with other workers.
    pub peers: PeerOptions,
    /// The way to a coordinator in the same process, where it is in the same process.
    pub local: Option<Arc<dyn LocalTransport>>,
}

impl SessionOptions {
    /// A worker for this coordinator, on one thread, with defaults for the rest.
    #[must_use]
    pub fn new(connect: String) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            connect,
            access: ClientAccess::default(),
            connect_timeout: Duration::from_secs(60),
            stay: false,
            name: format!("{host}-{}", std::process::id()),
            device: DeviceOptions { threads: Some(1), ..DeviceOptions::default() },
            print_events: false,
            share_memory: true,
            peers: PeerOptions::default(),
            local: None,
        }
    }

    /// Tells people about an event.
    pub(super) fn report(&self, text: &str) {
        if self.print_events {
            output::note(Level::Info, text);
        } else {
            tracing::info!(worker = self.name, "{text}");
        }
    }
}
