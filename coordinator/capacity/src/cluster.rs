//! The input of a plan: a cluster, and its work.

use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_numerics::{CHUNK, chunks};

use super::costs::Costs;
use tally_core::assign::{self, Load};

/// Bytes of an Ethernet frame with all that is around it, for those of them that carry a
/// gradient: 1 500 bytes less the headers of IP and TCP in 1 538 bytes of the line's time.
const FRAME: f64 = 1538.0 / 1448.0;

/// How long workers compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Computing {
    /// Seconds that a worker needs for a sample.
    pub sample: f64,
    /// Seconds that it needs for each subtree besides, however few samples it has.
    pub subtree: f64,
    /// A subtree is computed in one go, not leaf by leaf.
    pub at_once: bool,
    /// The share of what is computed last (the subtree, or its last leaf) after which the first
    /// chunk leaves; the others leave evenly from there to its end.
    pub first_chunk: f64,
    /// Computing keeps a core busy. The synthetic model sleeps.
    pub uses_core: bool,
    /// Seconds of a core for each element of each leaf's gradient, at least: what the synthetic
    /// model needs to make it.
    pub element: f64,
    /// Seconds by which a sleep is longer than it should be, where computing is one.
    pub oversleep: f64,
}

/// The links, in bytes a second, and the way between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Into the coordinator.
    pub coordinator_in: f64,
    /// Out of the coordinator.
    pub coordinator_out: f64,
    /// Out of each worker: its share of its machine's link.
    pub worker_out: f64,
    /// Into each worker, in the same way.
    pub worker_in: f64,
    /// Seconds from a worker to the coordinator and back.
    pub round_trip: f64,
}

impl Network {
    /// Links of so many bits a second, the same both ways.
    #[must_use]
    pub fn of_bits(coordinator: f64, worker: f64, round_trip: f64) -> Self {
        let [coordinator, worker] = [coordinator, worker].map(|bits| bits / 8.0 / FRAME);
        Self {
            coordinator_in: coordinator,
            coordinator_out: coordinator,
            worker_out: worker,
            worker_in: worker,
            round_trip,
        }
    }

    /// Links that take no time.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::of_bits(f64::INFINITY, f64::INFINITY, 0.0)
    }
}

/// A cluster, and what it is to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Workers, all alike.
    pub workers: usize,
    /// Elements of the gradient.
    pub parameters: usize,
    /// Its number format on the wire.
    pub wire_dtype: WireDtype,
    /// Samples of a step, over all workers.
    pub batch_size: usize,
    /// The tree over the step's microbatches.
    pub tree: Tree,
    /// Vectors that the optimizer keeps beside the parameters.
    pub moments: usize,
    /// The gradient is clipped, so that the update waits for the whole sum.
    pub clipped: bool,
    /// How long workers compute.
    pub computing: Computing,
    /// How fast things travel.
    pub network: Network,
    /// Cores of the coordinator's machine.
    pub cores: usize,
    /// The workers run on the coordinator's machine, and share its cores.
    pub one_machine: bool,
    /// Workers that share a machine's link, and combine their gradients in sharded steps.
    pub per_machine: usize,
    /// Bytes of a sample.
    pub sample_bytes: f64,
    /// Bytes of the data set in the coordinator's memory.
    pub data_bytes: usize,
    /// The costs of handling bytes, elements and messages.
    pub costs: Costs,
}

impl Cluster {
    /// What each worker is given in a step, as the coordinator gives it to workers that are
    /// equally fast.
    #[must_use]
    pub fn layout(&self) -> Vec<Vec<Node>> {
        let load = self.batch_size as f64 / f64::from(self.tree.microbatches()) * self.computing.sample;
        let loads = vec![Load { busy: 0.0, per_leaf: load }; self.workers];
        let coming = self.gradient_bytes()
            * (1.0 / self.network.coordinator_in + self.costs.receive_byte / self.cores.max(1) as f64);
        let full = |nodes: Vec<Node>| {
            nodes.into_iter().filter(|node| !self.tree.is_empty(*node, self.batch_size)).collect()
        };
        let shares = assign::shares(self.tree, &loads, coming);
        let runs = assign::runs(self.tree, 0..self.tree.microbatches(), &shares);
        runs.into_iter().map(full).collect()
    }

    /// Samples of a node.
    #[must_use]
    pub fn samples(&self, node: Node) -> usize {
        let leaves = self.tree.leaves(node);
        self.tree.samples(leaves.end - 1, self.batch_size).end
            - self.tree.samples(leaves.start, self.batch_size).start
    }

    /// Chunks of a gradient.
    #[must_use]
    pub fn chunks(&self) -> usize {
        chunks(self.parameters)
    }

    /// Elements of a chunk.
    #[must_use]
    pub fn elements(&self, chunk: usize) -> usize {
        (self.parameters - chunk * CHUNK).min(CHUNK)
    }

    /// Bytes of a gradient on the wire.
    #[must_use]
    pub fn gradient_bytes(&self) -> f64 {
        (self.parameters * self.wire_dtype.bytes()) as f64
    }

    /// Seconds of computing that a step takes all workers together.
    #[must_use]
    pub fn computing_seconds(&self) -> f64 {
        self.batch_size as f64 * self.computing.sample
    }
}
