//! A sharded step: workers add gradients up among themselves. A formula, because all links carry the same at the same
//! time, so the greatest share of one of them decides, and not the order of chunks.

use tally_numerics::layout::Machine;

use super::cluster::Cluster;

/// Seconds of a sharded step; `None` if there are no two machines whose workers compute.
#[must_use]
pub fn step_seconds(cluster: &Cluster) -> Option<f64> {
    let layout = cluster.layout();
    if layout.iter().filter(|nodes| !nodes.is_empty()).count() < 2 {
        return None;
    }
    let Cluster { computing, costs, network, .. } = cluster;
    let compute = layout.iter().map(|nodes| {
        let work: usize = nodes.iter().map(|&node| cluster.samples(node)).sum();
        work as f64 * computing.sample + nodes.len() as f64 * computing.subtree
    });
    let compute = compute.fold(0.0, f64::max);

    // The workers of a machine combine what they were given into as few nodes as can be.
    let mates = cluster.per_machine.clamp(1, cluster.workers);
    let machines: Vec<&[_]> = layout.chunks(mates).collect();
    let combined = machines
        .iter()
        .map(|machine| Machine::combined(cluster.tree, machine.iter().flatten().copied()).len());
    let combined: Vec<usize> = combined.collect();
    let nodes: usize = combined.iter().sum();
    let most = combined.into_iter().max().unwrap_or(0) as f64;
    let given = machines.iter().map(|machine| machine.iter().map(Vec::len).sum::<usize>()).max().unwrap_or(0);
    let own = layout.iter().map(Vec::len).max().unwrap_or(0) as f64;

    // Every worker owns the same share of the chunks, and combines the same share of its machine's others.
    let (gradient, elements) = (cluster.gradient_bytes(), cluster.parameters as f64);
    let (owners, mates) = (cluster.workers as f64, mates as f64);
    let elsewhere = 1.0 - 1.0 / machines.len() as f64;
    // A machine's link: combined sums to owners elsewhere, and its own owners' sums to other machines and the coordinator.
    let link_out = most * gradient * elsewhere + gradient;
    let theirs = (nodes as f64 - most).max(0.0);
    let link_in = theirs * gradient / machines.len() as f64 + gradient * elsewhere;
    // A worker: the same in its share, what it sends its mates to combine, and the sums that it passes on to them.
    let to_mates = (mates - 1.0) / mates;
    let out = link_out / mates
        + own * gradient * to_mates
        + gradient * elsewhere * to_mates
        + gradient / owners * (mates - 1.0);
    let inward = theirs * gradient / owners
        + (given as f64 - own) * gradient / mates
        + gradient * (1.0 - 1.0 / owners);
    let added = (given as f64 - most).max(0.0) * elements / mates
        + (nodes.saturating_sub(1)) as f64 * elements / owners;
    let worker =
        out * costs.worker_send_byte + inward * costs.worker_receive_byte + added * costs.add_element;

    // On one machine all of them share the cores.
    let cores = if cluster.one_machine { cluster.cores.max(1) as f64 } else { f64::INFINITY };
    let coordinator = gradient * costs.receive_byte / cluster.cores.max(1) as f64;
    let exchange = [
        link_out / (network.worker_out * mates),
        link_in / (network.worker_in * mates),
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
