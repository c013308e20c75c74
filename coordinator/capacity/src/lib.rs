//! Predicts a cluster: the time of a step and its parts, the load of the coordinator's link and processor, its
//! memory, and the limit.
//!
//! Pure, as the core is: a [`Cluster`] in, a [`Prediction`] out. A few steps are played chunk by chunk on a virtual
//! clock ([`step`]), with the layout and the additions of a real run and with the costs ([`costs`]) that `scaling`
//! measures; the parts and the limit are what changes when something takes no time. A [`sharded`] step is a formula. `docs/measurements/scaling.md`
//! compares it with real clusters.

pub mod advice;
pub mod cluster;
pub mod costs;
pub mod event_simulation;
pub mod memory;
pub mod pieces;
pub mod sharded;
pub mod step;

use serde::Serialize;

pub use cluster::{Cluster, Computing, Network};
pub use costs::Costs;
pub use memory::Memory;

/// What a step consists of, in seconds that add up to it: by how much it gets shorter when one
/// after the other takes no time, so what goes on beside something longer counts nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Parts {
    /// Computing of the slowest worker, and what nothing below explains.
    pub compute: f64,
    /// Gradients on their way up.
    pub gradients_up: f64,
    /// Adding them up.
    pub reduce: f64,
    /// The sum on its way down.
    pub sum_down: f64,
    /// The update, by the coordinator and by the workers.
    pub update: f64,
    /// Samples on their way down.
    pub samples: f64,
    /// Messages: plans, commits, the way they go, and waking up for them.
    pub control: f64,
}

/// How much of a step something is busy, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Busy {
    /// The mean worker's computing.
    pub computing: f64,
    /// The coordinator's link, in.
    pub link_in: f64,
    /// The same, out.
    pub link_out: f64,
    /// The coordinator's one thread that adds up and decides.
    pub driver: f64,
    /// The coordinator's cores, on which it is (and, on one machine, all workers are).
    pub cores: f64,
}

/// The prediction for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Workers.
    pub workers: usize,
    /// Those that are given something to compute.
    pub computing: usize,
    /// Seconds of a step with the star.
    pub step_seconds: f64,
    /// Seconds of a sharded step, if several workers compute.
    pub sharded_seconds: Option<f64>,
    /// What a step with the star consists of.
    pub parts: Parts,
    /// The share of the workers' time that is spent computing, if all of them need the same
    /// for a sample.
    pub efficiency: f64,
    /// Samples a second.
    pub samples_per_second: f64,
    /// Bytes of gradients and samples into and out of the coordinator, a step.
    pub bytes_in: f64,
    /// See `bytes_in`.
    pub bytes_out: f64,
    /// What is busy for how much of a step.
    pub busy: Busy,
    /// Seconds of a processor that the coordinator needs for a step.
    pub cpu_seconds: f64,
    /// What the coordinator holds.
    pub memory: Memory,
}

/// Seconds of a step of this cluster.
#[must_use]
pub fn step_seconds(cluster: &Cluster) -> f64 {
    step::play(cluster).seconds
}

/// What this cluster would do.
#[must_use]
pub fn predict(cluster: &Cluster) -> Prediction {
    let played = step::play(cluster);
    let seconds = played.seconds.max(f64::MIN_POSITIVE);
    let layout = cluster.layout();
    let nodes: usize = layout.iter().map(Vec::len).sum();
    let gradient = cluster.gradient_bytes();
    let samples_per_second = cluster.batch_size as f64 / seconds;
    let computing = cluster.computing_seconds() / (cluster.workers as f64 * seconds);
    Prediction {
        workers: cluster.workers,
        computing: layout.iter().filter(|nodes| !nodes.is_empty()).count(),
        step_seconds: played.seconds,
        sharded_seconds: sharded::step_seconds(cluster),
        parts: parts(cluster, played.seconds),
        efficiency: computing,
        samples_per_second,
        bytes_in: nodes as f64 * gradient,
        bytes_out: cluster.workers as f64 * gradient + cluster.batch_size as f64 * cluster.sample_bytes,
        busy: Busy {
            computing,
            link_in: played.link_in / seconds,
            link_out: played.link_out / seconds,
            driver: played.driver / seconds,
            cores: played.cores / seconds / cluster.cores.max(1) as f64,
        },
        cpu_seconds: played.coordinator,
        memory: Memory::of(cluster),
    }
}

/// Takes the time of one thing after the other away, and sees what that is worth.
fn parts(cluster: &Cluster, whole: f64) -> Parts {
    let mut left = cluster.clone();
    let mut before = whole;
    let mut without = |change: &dyn Fn(&mut Cluster)| {
        change(&mut left);
        // Whoever is first in a queue may change by it, so that a step gets a trifle longer.
        let now = step_seconds(&left).min(before);
        let worth = before - now;
        before = now;
        worth
    };
    let samples = without(&|c| c.sample_bytes = 0.0);
    let control = without(&|c| {
        c.costs = c.costs.without_messages();
        c.network.round_trip = 0.0;
    });
    let sum_down = without(&|c| {
        (c.network.coordinator_out, c.network.worker_in) = (f64::INFINITY, f64::INFINITY);
        (c.costs.send_byte, c.costs.worker_receive_byte) = (0.0, 0.0);
    });
    let update = without(&|c| (c.costs.update_element, c.costs.apply_element) = (0.0, 0.0));
    let gradients_up = without(&|c| {
        (c.network.coordinator_in, c.network.worker_out) = (f64::INFINITY, f64::INFINITY);
        (c.costs.receive_byte, c.costs.worker_send_byte) = (0.0, 0.0);
    });
    let reduce = without(&|c| (c.costs.add_element, c.costs.norm_element) = (0.0, 0.0));
    Parts { compute: before, gradients_up, reduce, sum_down, update, samples, control }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
