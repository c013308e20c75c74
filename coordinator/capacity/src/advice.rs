//! The limit of a cluster, and advice: the time of a step if one part took no time, or if an option were set
//! differently.

use std::fmt;

use serde::Serialize;
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;

use super::{Cluster, step_seconds};

/// The part that limits a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Computing: more or faster workers help.
    Computing,
    /// The coordinator's link.
    CoordinatorLink,
    /// Each worker's link.
    WorkerLinks,
    /// The time that messages are on their way.
    RoundTrips,
    /// The coordinator's processor.
    CoordinatorCpu,
    /// The workers' processors, in all that is not computing.
    WorkerCpu,
    /// Microbatches: some workers have none, or fewer than others.
    Microbatches,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Computing => "computing",
            Self::CoordinatorLink => "the coordinator's link",
            Self::WorkerLinks => "the workers' links",
            Self::RoundTrips => "round trips",
            Self::CoordinatorCpu => "the coordinator's CPU",
            Self::WorkerCpu => "the workers' CPU",
            Self::Microbatches => "microbatches",
        })
    }
}

/// A possible change, and its effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What to change, in words.
    pub what: String,
    /// Samples a second then.
    pub samples_per_second: f64,
    /// How many times as many as without the change.
    pub times: f64,
}

/// The least gain that is worth advice.
const WORTH_IT: f64 = 1.03;

/// What limits this cluster, whose step takes `seconds`: what would shorten it the most if it took no
/// time.
#[must_use]
pub fn limit(cluster: &Cluster, seconds: f64) -> Limit {
    let without = |change: &dyn Fn(&mut Cluster)| {
        let mut other = cluster.clone();
        change(&mut other);
        seconds - step_seconds(&other)
    };
    // Work that is dealt in whole leaves and to some workers only, against an even share of it.
    let most = cluster.layout().iter().map(|nodes| work(cluster, nodes)).max().unwrap_or(0);
    let even = cluster.batch_size as f64 / cluster.workers as f64;
    let uneven = (most as f64 - even) * cluster.computing.sample;
    let computing = even * cluster.computing.sample;
    // Bytes pass both ends of a way. If the two are equally slow, only both together make it faster.
    let coordinator_link = |c: &mut Cluster| {
        (c.network.coordinator_in, c.network.coordinator_out) = (f64::INFINITY, f64::INFINITY);
    };
    let worker_links =
        |c: &mut Cluster| (c.network.worker_in, c.network.worker_out) = (f64::INFINITY, f64::INFINITY);
    let link = match without(&worker_links) > without(&coordinator_link) {
        true => Limit::WorkerLinks,
        false => Limit::CoordinatorLink,
    };
    let links = without(&|c| {
        coordinator_link(c);
        worker_links(c);
    });
    let found = [
        (Limit::Computing, computing),
        (Limit::Microbatches, uneven),
        (link, links),
        (
            Limit::RoundTrips,
            without(&|c| {
                c.network.round_trip = 0.0;
                c.costs.wake = 0.0;
            }),
        ),
        (Limit::CoordinatorCpu, without(&|c| c.costs = c.costs.without_coordinator())),
        (Limit::WorkerCpu, without(&|c| c.costs = c.costs.without_workers())),
    ];
    let greatest = found.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
    greatest.map_or(Limit::Computing, |(limit, _)| limit)
}

fn work(cluster: &Cluster, nodes: &[tally_numerics::tree::Node]) -> usize {
    nodes.iter().map(|&node| cluster.samples(node)).sum()
}

/// What would make it faster, the best first.
#[must_use]
pub fn changes(cluster: &Cluster, seconds: f64) -> Vec<Change> {
    let now = cluster.batch_size as f64 / seconds;
    let mut found = Vec::new();
    let mut consider = |what: String, other: Cluster| {
        let samples_per_second = other.batch_size as f64 / step_seconds(&other).max(f64::MIN_POSITIVE);
        let times = samples_per_second / now;
        if times >= WORTH_IT {
            found.push(Change { what, samples_per_second, times });
        }
    };
    if cluster.wire_dtype == WireDtype::F32 {
        let what = "--wire-dtype bf16 (half the bytes; the trained model has other bits)";
        consider(what.into(), Cluster { wire_dtype: WireDtype::Bf16, ..cluster.clone() });
    }
    let batch_size = 2 * cluster.batch_size;
    let what = format!(
        "--batch-size {batch_size} (twice as much computing for the same bytes; fewer updates an epoch)"
    );
    consider(what, Cluster { batch_size, ..cluster.clone() });
    if !cluster.one_machine {
        let mut wider = cluster.clone();
        wider.network.coordinator_in *= 4.0;
        wider.network.coordinator_out *= 4.0;
        consider("four times the bandwidth of the coordinator's link".into(), wider);
        let mut wider = cluster.clone();
        wider.network.worker_in *= 4.0;
        wider.network.worker_out *= 4.0;
        consider("four times the bandwidth of each worker's link".into(), wider);
        consider(
            "twice the cores for the coordinator".into(),
            Cluster { cores: 2 * cluster.cores, ..cluster.clone() },
        );
    }
    let wanted = (cluster.workers as u32).next_power_of_two();
    for microbatches in [wanted, 4 * wanted] {
        if let Ok(tree) = Tree::new(microbatches)
            && microbatches > cluster.tree.microbatches()
            && microbatches as usize <= cluster.batch_size
        {
            consider(
                format!("--microbatches {microbatches} (the trained model has other bits)"),
                Cluster { tree, ..cluster.clone() },
            );
        }
    }
    for workers in [cluster.workers / 2, 2 * cluster.workers] {
        if workers > 0 {
            consider(format!("--workers {workers}"), Cluster { workers, ..cluster.clone() });
        }
    }
    found.sort_by(|a, b| b.times.total_cmp(&a.times));
    found
}
