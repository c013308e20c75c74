//! What travels, and what it costs on its way: writing, the links, and reading.

use super::{Down, Event, Player, Stage, Up};

/// Bytes of a message without floats.
const SMALL: f64 = 100.0;

impl Player<'_> {
    /// Bytes of floats, and of everything.
    fn down_bytes(&self, what: Down) -> (f64, f64) {
        let floats = match what {
            Down::Sum(chunk) => self.chunk_bytes(chunk),
            _ => 0.0,
        };
        let samples = match what {
            Down::Samples(samples) => samples as f64 * self.cluster.sample_bytes,
            _ => 0.0,
        };
        (floats, floats + samples + SMALL)
    }

    fn up_bytes(&self, what: Up) -> (f64, f64) {
        match what {
            Up::Chunk(_, chunk) => {
                let floats = self.chunk_bytes(chunk);
                (floats, floats + SMALL * self.around(chunk))
            }
            Up::Committed => (0.0, SMALL),
        }
    }

    fn chunk_bytes(&self, chunk: usize) -> f64 {
        (self.cluster.elements(chunk) * self.cluster.wire_dtype.bytes()) as f64
    }

    /// Messages that something is.
    fn messages(&self, what: Up) -> f64 {
        match what {
            Up::Chunk(_, chunk) => self.around(chunk),
            Up::Committed => 1.0,
        }
    }

    pub(super) fn send(&mut self, at: usize, what: Down) {
        let costs = &self.cluster.costs;
        let seconds = costs.message + costs.send_byte * self.down_bytes(what).0;
        self.served += seconds;
        self.clock.work(self.workers[at].writes, seconds, Event::Down(Stage::Written, at, what));
    }

    pub(super) fn contribute(&mut self, at: usize, what: Up) {
        let costs = &self.cluster.costs;
        let seconds =
            costs.worker_message * self.messages(what) + costs.worker_send_byte * self.up_bytes(what).0;
        self.clock.work(self.workers[at].net, seconds, Event::Up(Stage::Written, at, what));
    }

    pub(super) fn down(&mut self, stage: Stage, at: usize, what: Down) {
        let (floats, bytes) = self.down_bytes(what);
        let (network, costs, worker) = (self.cluster.network, self.cluster.costs, &self.workers[at]);
        let next = |stage| Event::Down(stage, at, what);
        match stage {
            Stage::Written => {
                self.clock.work(worker.turn_out, bytes / network.coordinator_out, next(Stage::Hop));
            }
            // A link that is no narrower than the one before it takes no time of its own.
            Stage::Hop if network.worker_in < network.coordinator_out => {
                self.clock.work(worker.link_in, bytes / network.worker_in, next(Stage::Carried));
            }
            Stage::Hop | Stage::Carried => {
                self.clock.after(0.5 * network.round_trip + costs.wake, next(Stage::Came));
            }
            Stage::Came => {
                let seconds = costs.worker_message + costs.worker_receive_byte * floats;
                self.clock.work(worker.net, seconds, next(Stage::Read));
            }
            Stage::Read => self.clock.after(costs.wake, next(Stage::Heard)),
            Stage::Heard => self.told(at, what),
        }
    }

    pub(super) fn up(&mut self, stage: Stage, at: usize, what: Up) {
        let (floats, bytes) = self.up_bytes(what);
        let messages = self.messages(what);
        let (network, costs, worker) = (self.cluster.network, self.cluster.costs, &self.workers[at]);
        let next = |stage| Event::Up(stage, at, what);
        match stage {
            Stage::Written if network.worker_out < network.coordinator_in => {
                self.clock.work(worker.link_out, bytes / network.worker_out, next(Stage::Hop));
            }
            Stage::Written | Stage::Hop => {
                self.clock.work(worker.turn_in, bytes / network.coordinator_in, next(Stage::Carried));
            }
            Stage::Carried => self.clock.after(0.5 * network.round_trip + costs.wake, next(Stage::Came)),
            Stage::Came => {
                let unpacking = if self.rounds() { costs.unpack_element } else { 0.0 };
                let elements = floats / self.cluster.wire_dtype.bytes() as f64;
                let seconds = costs.message * messages + costs.receive_byte * floats + unpacking * elements;
                self.served += seconds;
                self.clock.work(worker.reads, seconds, next(Stage::Read));
            }
            Stage::Read => self.clock.after(costs.wake, next(Stage::Heard)),
            Stage::Heard => match what {
                Up::Chunk(node, chunk) => self.chunk(node, chunk),
                Up::Committed => self.drive(costs.driver_message, Event::Done),
            },
        }
    }
}
