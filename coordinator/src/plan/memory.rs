//! What the coordinator holds in memory.

use serde::Serialize;
use tally_exact::CHUNK;
use tally_proto::WINDOW;

use super::cluster::Cluster;

/// The program, its threads and what they hold before there is a model or a worker.
const PROGRAM: usize = 24 << 20;
/// Of each connection, beside chunks: HTTP/2's buffers, queues, names, series and lanes.
const CONNECTION: usize = 160 << 10;
/// Chunks of each connection that are neither in the window nor in the sum: one being read from its
/// frames, one being written to them, as bytes and as a message.
const IN_HAND: usize = 3;

/// The coordinator's memory by what it is for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// The program and the data set.
    pub base: usize,
    /// The referee's parameters and momentum, and a copy of them while a checkpoint is written.
    pub referee: usize,
    /// The sum, as floats and, if that is another type, as it travels.
    pub sum: usize,
    /// Chunks that wait to be added up: the most in a usual step.
    pub waiting: usize,
    /// What connections hold besides.
    pub connections: usize,
    /// Never more than this, whatever workers do: all that credits allow them to send.
    pub bound: usize,
}

impl Memory {
    /// All of it in a usual step.
    #[must_use]
    pub fn total(&self) -> usize {
        self.base + self.referee + self.sum + self.waiting + self.connections
    }

    /// Of this cluster, whose driver had so many chunks at once that waited.
    #[must_use]
    pub fn of(cluster: &Cluster, waiting: usize) -> Self {
        let model = 4 * cluster.parameters;
        let chunk = 4 * cluster.parameters.min(CHUNK);
        let travels = cluster.wire_dtype.bytes();
        let sum = model + if travels < 4 { travels * cluster.parameters } else { 0 };
        let nodes: usize = cluster.layout().iter().map(Vec::len).sum();
        let memory = Self {
            base: PROGRAM + cluster.data_bytes,
            referee: 4 * model,
            sum,
            waiting: waiting * chunk,
            connections: cluster.workers * (CONNECTION + IN_HAND * chunk),
            bound: 0,
        };
        let window = nodes * WINDOW.min(cluster.chunks()) * chunk;
        Self { bound: memory.total() - memory.waiting + window, ..memory }
    }
}
