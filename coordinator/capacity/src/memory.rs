//! The coordinator's memory.

use serde::Serialize;
use tally_numerics::CHUNK;
use tally_numerics::CREDIT_WINDOW;

use super::cluster::Cluster;

/// The program, its threads and what they hold beside the data set; measured.
const PROGRAM: usize = 34 << 20;
/// Reading the embedded data set takes so many times its size for a moment, and this much more.
const READING: (usize, usize) = (2, 19 << 20);
/// Chunks of each connection that are neither in its window nor in the sum: one in HTTP/2's frames
/// and one being put together from them, one that goes out as bytes and as a message.
const IN_HAND: usize = 4;

/// The coordinator's memory by what it is for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// The program and the data set; more of it at the start than later.
    pub base: usize,
    /// The same for a moment while it starts, when there is nothing else yet.
    pub starting: usize,
    /// The parameters and the moments of the master state.
    pub referee: usize,
    /// The sum, as floats and, if that is another type, as it travels.
    pub sum: usize,
    /// All that credits allow workers to have sent before it is added up.
    pub window: usize,
    /// What connections hold besides.
    pub connections: usize,
    /// A second master state while a checkpoint is being written; not in the total.
    pub checkpoint: usize,
}

impl Memory {
    /// The most that it comes to in steps without a checkpoint.
    #[must_use]
    pub fn total(&self) -> usize {
        let running = self.base + self.referee + self.sum + self.window + self.connections;
        running.max(self.starting)
    }

    /// Of this cluster.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let model = 4 * cluster.parameters;
        let chunk = 4 * cluster.parameters.min(CHUNK);
        let travels = cluster.wire_dtype.bytes();
        let nodes: usize = cluster.layout().iter().map(Vec::len).sum();
        Self {
            base: PROGRAM + cluster.data_bytes,
            starting: READING.0 * cluster.data_bytes + READING.1,
            referee: (1 + cluster.moments) * model,
            sum: model + if travels < 4 { travels * cluster.parameters } else { 0 },
            window: nodes * CREDIT_WINDOW.min(cluster.chunks()) * chunk,
            connections: cluster.workers * IN_HAND * chunk,
            checkpoint: (1 + cluster.moments) * model,
        }
    }
}
