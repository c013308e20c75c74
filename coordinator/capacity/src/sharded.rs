//! A sharded step: workers add gradients up among themselves. A formula, because all links carry the same at the same
//! time, so the greatest share of one of them decides, and not the order of chunks.

use super::cluster::Cluster;

/// Seconds of a sharded step; `None` if there are no two workers that compute.
#[must_use]
pub fn step_seconds(cluster: &Cluster) -> Option<f64> {
    let layout = cluster.layout();
    let nodes: usize = layout.iter().map(Vec::len).sum();
    let most = layout.iter().map(Vec::len).max().unwrap_or(0);
    if layout.iter().filter(|nodes| !nodes.is_empty()).count() < 2 {
        return None;
    }
    let Cluster { computing, costs, network, .. } = cluster;
    let compute = layout.iter().map(|nodes| {
        let work: usize = nodes.iter().map(|&node| cluster.samples(node)).sum();
        work as f64 * computing.sample + nodes.len() as f64 * computing.subtree
    });
    let compute = compute.fold(0.0, f64::max);
    // Every worker owns the same share: partial sums for others and its sums for all, with the coordinator, leave.
    let (gradient, elements) = (cluster.gradient_bytes(), cluster.parameters as f64);
    let owners = cluster.workers as f64;
    let others = 1.0 - 1.0 / owners;
    let out = most as f64 * gradient * others + gradient;
    let own = most as f64;
    let inward = (nodes as f64 - own).max(0.0) * gradient / owners + gradient * others;
    let added = nodes.saturating_sub(1) as f64 * elements / owners;
    let worker =
        out * costs.worker_send_byte + inward * costs.worker_receive_byte + added * costs.add_element;
    // On one machine all of them share the cores.
    let cores = if cluster.one_machine { cluster.cores.max(1) as f64 } else { f64::INFINITY };
    let coordinator = gradient * costs.receive_byte / cluster.cores.max(1) as f64;
    let exchange = [
        out / network.worker_out,
        inward / network.worker_in,
        worker,
        (worker * owners + gradient * costs.receive_byte) / cores,
        gradient / network.coordinator_in,
        coordinator,
        elements * costs.norm_element,
    ];
    let exchange = exchange.into_iter().fold(0.0, f64::max);
    // What leaves while the last microbatch is computed is not waited for.
    let last = computing.sample * cluster.batch_size as f64 / f64::from(cluster.tree.microbatches());
    let hidden = (1.0 - computing.first_chunk).clamp(0.0, 1.0) * last.min(compute);
    let update = elements * costs.update_element.max(costs.apply_element);
    let samples = cluster.batch_size as f64 * cluster.sample_bytes / network.coordinator_out;
    let control = 2.0 * network.round_trip + costs.driver_step + costs.worker_step + 4.0 * costs.wake;
    Some(compute + (exchange - hidden).max(exchange / owners) + update + samples.max(control))
}
