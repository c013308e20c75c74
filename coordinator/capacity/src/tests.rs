//! What a plan must say, where it can be worked out by hand.

use proptest::prelude::*;
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;
use tally_numerics::{CHUNK, CREDIT_WINDOW};

use super::advice::{Limit, changes, limit};
use super::*;

/// Costs of nothing, so that only computing and links are left.
fn free() -> Costs {
    Costs {
        receive_byte: 0.0,
        send_byte: 0.0,
        add_element: 0.0,
        norm_element: 0.0,
        update_element: 0.0,
        ..Costs::default().without_messages().without_workers()
    }
}

/// Bytes of a chunk.
const BYTES: f64 = 4.0 * CHUNK as f64;

/// Eight leaves of eight samples of 1 ms, and gradients of one chunk.
fn cluster(workers: usize) -> Cluster {
    Cluster {
        workers,
        parameters: CHUNK,
        wire_dtype: WireDtype::F32,
        batch_size: 64,
        tree: Tree::new(8).unwrap(),
        clipped: true,
        computing: Computing {
            sample: 1e-3,
            subtree: 0.0,
            at_once: false,
            first_chunk: 1.0,
            uses_core: false,
            element: 0.0,
            oversleep: 0.0,
        },
        network: Network::unlimited(),
        cores: 8,
        one_machine: false,
        per_machine: 1,
        sample_bytes: 0.0,
        moments: 1,
        data_bytes: 0,
        costs: free(),
    }
}

fn is(seconds: f64, wanted: f64) {
    assert!((seconds - wanted).abs() < 2e-3 * wanted, "{seconds} and not {wanted}");
}

#[test]
fn without_any_other_cost_a_step_is_its_greatest_share() {
    // Of eight leaves: all, four, three, two; nine workers are no quicker than eight.
    for (workers, leaves) in [(1, 8.0), (2, 4.0), (3, 3.0), (4, 2.0), (7, 2.0), (8, 1.0), (9, 1.0)] {
        is(step_seconds(&cluster(workers)), leaves * 8e-3);
    }
    let nine = predict(&cluster(9));
    assert_eq!((nine.workers, nine.computing), (9, 8));
    is(nine.efficiency, 8.0 / 9.0);
}

/// Two chunks a second: each of four workers' gradients takes half a second up, and each sum half a second down.
#[test]
fn one_link_carries_everybodys_gradients_and_sums() {
    let mut slow = cluster(4);
    (slow.network.coordinator_in, slow.network.coordinator_out) = (2.0 * BYTES, 2.0 * BYTES);
    let prediction = predict(&slow);
    is(prediction.step_seconds, 16e-3 + 4.0 * 0.5 + 4.0 * 0.5);
    is(prediction.parts.compute, 16e-3);
    is(prediction.parts.gradients_up, 2.0);
    is(prediction.parts.sum_down, 2.0);
    assert_eq!(limit(&slow, prediction.step_seconds), Limit::CoordinatorLink);
    // Half the bytes, half the time.
    let best = changes(&slow, prediction.step_seconds);
    let bf16 = best.iter().find(|change| change.what.contains("bf16")).unwrap();
    is(bf16.times, (4.0 + 16e-3) / (2.0 + 16e-3));
}

/// A gradient of many chunks comes down while the rest of it still goes up.
#[test]
fn a_sum_goes_down_while_later_chunks_go_up() {
    let mut long = Cluster { parameters: 100 * CHUNK, ..cluster(1) };
    (long.network.coordinator_in, long.network.coordinator_out) = (100.0 * BYTES, 100.0 * BYTES);
    // All chunks up in a second, and the last of them down.
    is(step_seconds(&long), 64e-3 + 1.0 + 0.01);
}

#[test]
fn chunks_leave_while_the_last_leaf_is_computed() {
    let mut early = Cluster { parameters: 8 * CHUNK, ..cluster(8) };
    (early.network.coordinator_in, early.network.coordinator_out) = (8192.0 * BYTES, f64::INFINITY);
    let late = step_seconds(&early);
    early.computing.first_chunk = 0.0;
    // 64 chunks at 8 192 a second; only the last round of eight is left at the end.
    is(late, 8e-3 + 64.0 / 8192.0);
    is(step_seconds(&early), 8e-3 + 8.0 / 8192.0);
}

/// A window of chunks may be on its way, so a long way has its price whatever the bandwidth.
#[test]
fn credits_bound_what_is_on_its_way() {
    let mut far = Cluster { parameters: 10 * CREDIT_WINDOW * CHUNK, ..cluster(1) };
    far.network.round_trip = 0.1;
    // The plan's half, then ten windows there and back.
    is(step_seconds(&far), 0.05 + 64e-3 + 10.0 * 0.1 - 0.05);
    assert_eq!(limit(&far, step_seconds(&far)), Limit::RoundTrips);
}

#[test]
fn the_parts_add_up_and_microbatches_can_be_the_limit() {
    let costs = Costs::default();
    for workers in [1, 3, 8, 40] {
        let real = Cluster {
            costs,
            sample_bytes: 790.0,
            network: Network::of_bits(1e9, 1e8, 1e-3),
            ..cluster(workers)
        };
        let prediction = predict(&real);
        let Parts { compute, gradients_up, reduce, sum_down, update, samples, control } = prediction.parts;
        is(compute + gradients_up + reduce + sum_down + update + samples + control, prediction.step_seconds);
        assert!(prediction.busy.link_out <= 1.0 && prediction.busy.cores <= 1.0, "{prediction:?}");
    }
    assert_eq!(limit(&cluster(40), step_seconds(&cluster(40))), Limit::Microbatches);
    assert_eq!(limit(&cluster(4), step_seconds(&cluster(4))), Limit::Computing);
}

/// Four processes of one machine's two cores, which each compute 16 ms of a core's time.
#[test]
fn workers_of_one_machine_share_its_cores() {
    let mut one = Cluster { cores: 2, one_machine: true, ..cluster(4) };
    one.computing.uses_core = true;
    is(step_seconds(&one), 32e-3);
    one.one_machine = false;
    is(step_seconds(&one), 16e-3);
}

/// Four workers on each of two links of 1 MB/s, whose gradients of two chunks travel in no time but on links.
#[test]
fn workers_of_one_machine_send_one_gradient_in_sharded_steps() {
    let link = 1e6;
    let mut alone = Cluster { parameters: 2 * CHUNK, ..cluster(8) };
    alone.computing.first_chunk = 1.0;
    (alone.network.worker_in, alone.network.worker_out) = (link / 4.0, link / 4.0);
    let combined = Cluster { per_machine: 4, ..alone.clone() };
    let (gradient, compute) = (combined.gradient_bytes(), 8e-3);
    // Half of a gradient leaves for the other machine's owners, and the sums of half of the chunks for it and the coordinator.
    is(sharded::step_seconds(&combined).unwrap(), compute + 1.5 * gradient / link);
    // In the star all eight gradients pass both links at once.
    let mut star = combined.clone();
    (star.network.coordinator_in, star.network.coordinator_out) = (2.0 * link, 2.0 * link);
    let limit = limit(&star, step_seconds(&star));
    assert!(matches!(limit, Limit::CoordinatorLink | Limit::WorkerLinks), "{limit}");
    // Each of four workers sends seven eighths, and a gradient's worth of sums.
    is(sharded::step_seconds(&alone).unwrap(), compute + 4.0 * 1.875 * gradient / link);
}

proptest! {
    #[test]
    fn whatever_is_planned_has_an_answer_and_a_faster_link_is_no_slower(
        workers in 1usize..70, power in 0u32..7, batch in 1usize..200, parameters in 1usize..3_000_000,
        bits in 1e7f64..1e11, one_machine: bool, clipped: bool, bf16: bool,
    ) {
        let cluster = Cluster {
            tree: Tree::new(1 << power).unwrap(),
            batch_size: batch,
            parameters,
            one_machine,
            clipped,
            wire_dtype: if bf16 { WireDtype::Bf16 } else { WireDtype::F32 },
            costs: Costs::default(),
            sample_bytes: 790.0,
            network: Network::of_bits(bits, bits, 1e-3),
            ..cluster(workers)
        };
        let slow = step_seconds(&cluster);
        let faster = Cluster { network: Network::of_bits(4.0 * bits, 4.0 * bits, 1e-3), ..cluster.clone() };
        let fast = step_seconds(&faster);
        prop_assert!(slow.is_finite() && slow > 0.0);
        // Another order of arrival may cost a trifle where the link is what all wait for. Where cores are, it may cost
        // more, but never double (Graham's anomalies), and so may another layout, which is chosen by an estimate.
        let link_bound = bits < 1e9 && !one_machine && cluster.layout() == faster.layout();
        prop_assert!(fast <= if link_bound { 1.05 } else { 2.0 } * slow, "{} and then {}", slow, fast);
        let prediction = predict(&cluster);
        prop_assert!(prediction.memory.total() > prediction.memory.window);
    }
}
