//! **SUM-1**: the same seed gives the same bits, however many workers there are and
//! wherever they run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use tally_tools::cluster::{RunDir, digests, events, train_apart, train_local};

type Train = fn(usize, &[&str]) -> RunDir;

/// 1 to 4 workers, as threads of the coordinator and as processes of their own.
const ALL: [(Train, usize); 8] = [
    (train_local, 1),
    (train_local, 2),
    (train_local, 3),
    (train_local, 4),
    (train_apart, 1),
    (train_apart, 2),
    (train_apart, 3),
    (train_apart, 4),
];

/// Trains in several ways and compares the parameters, and the state after every step.
fn clusters_agree(clusters: &[(Train, usize)], steps: usize, options: &[&str]) {
    let runs = clusters.iter().map(|&(train, workers)| outcome(&train(workers, options), steps, workers));
    let seen: BTreeSet<_> = runs.collect();
    assert_eq!(seen.len(), 1, "{seen:#?}");
}

/// What may not differ: the parameters, the digests of every step, the test's answers.
fn outcome(run: &RunDir, steps: usize, workers: usize) -> (String, Vec<String>, String) {
    let (summary, journal) = (run.summary(), run.journal());
    assert_eq!(summary["steps"], steps);
    // Nobody was sent away. (A machine so busy that a connection breaks changes no bit.)
    let broke = |loss: &&&serde_json::Value| loss["reason"].to_string().contains("its connection");
    let lost = events(&journal, "lost");
    assert_eq!(lost.iter().filter(broke).count(), lost.len(), "{lost:?}");
    assert_eq!((&summary["samples_lost"], &summary["samples_duplicated"]), (&0.into(), &0.into()));
    // Were it one worker that computed all, equal bits would be no news.
    let contributed = events(&journal, "step").iter().filter_map(|s| s["workers"].as_u64()).max();
    assert_eq!(contributed, Some(workers as u64), "workers that took part");
    (run.sha256(), digests(&journal), summary["test"].to_string())
}

#[test]
fn sum_1_synthetic_gradients_of_several_chunks_have_the_same_bits_for_any_workers() {
    let model = "synthetic:parameters=600000,us-per-sample=20";
    let options = ["--model", model, "--epochs", "2", "--train-limit", "160", "--test-limit", "150"];
    clusters_agree(&ALL, 20, &options);
}

#[test]
fn sum_1_a_small_network_has_the_same_bits_for_any_workers() {
    let options = ["--model", "mlp", "--epochs", "2", "--train-limit", "160", "--test-limit", "150"];
    clusters_agree(&ALL, 20, &options);
}

/// 100 samples in batches of 24: four steps and a short fifth one, whose leaves have no
/// sample or one, since 4 samples are cut into 16.
#[test]
fn sum_1_a_short_last_batch_with_empty_leaves_has_the_same_bits_for_any_workers() {
    let options = ["--model", "mlp", "--batch-size", "24", "--microbatches", "16", "--epochs", "4"];
    clusters_agree(&ALL, 20, &[&options[..], &["--train-limit", "100", "--test-limit", "30"]].concat());
}

/// Rounded at every node: whoever adds, and whatever travels. One machine that computes the
/// steps again rounds as they did.
#[test]
fn sum_1_gradients_as_bfloat16_have_the_same_bits_for_any_workers() {
    let options = ["--model", "mlp", "--epochs", "2", "--train-limit", "160", "--test-limit", "150"];
    let rounded = [&options[..], &["--wire-dtype", "bf16"]].concat();
    clusters_agree(&ALL, 20, &rounded);
    let run = train_apart(3, &rounded);
    assert_ne!(run.sha256(), train_local(1, &options).sha256(), "it makes a difference");
    let verified = tally_tools::cluster::run("coordinator", ["verify", run.arg()]);
    assert!(verified.status.success(), "{}", verified.stderr);
}

/// A batch smaller than the number of leaves: every step has empty leaves, and a worker's
/// whole subtree may be empty.
#[test]
fn sum_1_a_batch_smaller_than_the_microbatches_has_the_same_bits_for_any_workers() {
    let options = ["--model", "mlp", "--batch-size", "5", "--microbatches", "32", "--epochs", "2"];
    clusters_agree(&ALL, 20, &[&options[..], &["--train-limit", "50", "--test-limit", "10"]].concat());
}

/// The reference network, 25.6 MB a gradient. Leaves of one or two samples, and half of the clusters, keep it short.
#[test]
fn sum_1_the_reference_network_has_the_same_bits_for_any_workers() {
    let clusters: [(Train, usize); 4] =
        [(train_local, 1), (train_apart, 2), (train_local, 3), (train_apart, 4)];
    let options = ["--model", "reference", "--batch-size", "5", "--microbatches", "4", "--epochs", "1"];
    clusters_agree(&clusters, 20, &[&options[..], &["--train-limit", "100", "--test-limit", "8"]].concat());
    // Rounded, by an engine that adds a subtree up itself.
    let rounded = ["--train-limit", "20", "--test-limit", "8", "--wire-dtype", "bf16"];
    clusters_agree(&clusters, 4, &[&options[..], &rounded].concat());
}

/// As GPUs do it, whose leaves are added up on the device.
#[test]
fn sum_1_workers_that_compute_as_gpus_have_the_same_bits_for_any_number_of_them() {
    let options = ["--model", "mlp", "--epochs", "1", "--train-limit", "80", "--test-limit", "30"];
    let clusters: [(Train, usize); 3] = [(train_local, 1), (train_local, 2), (train_local, 3)];
    for wire in ["f32", "bf16"] {
        let way = ["--backend", "cpu-as-gpu", "--wire-dtype", wire];
        clusters_agree(&clusters, 5, &[&options[..], &way].concat());
    }
}

/// Other seeds give other bits; else the tests above would prove nothing.
#[test]
fn data_2_another_seed_gives_other_bits() {
    let options = ["--model", "mlp", "--epochs", "1", "--train-limit", "64", "--test-limit", "10"];
    let seeds = ["1", "2"].map(|seed| train_local(1, &[&options[..], &["--seed", seed]].concat()).sha256());
    assert_ne!(seeds[0], seeds[1]);
}
