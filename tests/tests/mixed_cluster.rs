//! A cluster of unlike workers, as a GPU beside a CPU: gradients have other bits, replicas have not (**REP-1**).

#![allow(clippy::unwrap_used, clippy::panic)]

use tally_tools::cluster::{Coordinator, RunDir, Worker, events};

const CPU: [&str; 4] = ["--name", "cpu", "--backend", "cpu"];
/// Computes as a GPU does, with a CPU's arithmetic.
const GPU: [&str; 4] = ["--name", "gpu", "--backend", "cpu-as-gpu"];

fn train(run: &RunDir, workers: &[[&str; 4]], options: &[&str]) {
    let count = workers.len().to_string();
    let arguments = [&["--workers", &count, "--run-dir", run.arg(), "--test-limit", "20"], options].concat();
    let coordinator = Coordinator::start(arguments);
    let workers: Vec<Worker> =
        workers.iter().map(|options| Worker::start(coordinator.grpc_port(), options)).collect();
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
}

const SMALL: [&str; 8] = ["--model", "mlp", "--epochs", "2", "--batch-size", "64", "--train-limit", "1280"];

#[test]
fn rep_1_replicas_agree_whatever_their_gradients_were_computed_on() {
    for wire in ["f32", "bf16"] {
        let options = [&SMALL[..], &["--wire-dtype", wire, "--audit-rate", "0.5"]].concat();
        let [cpu, gpu, both] = [(); 3].map(|()| RunDir::new());
        train(&cpu, &[CPU], &options);
        train(&gpu, &[GPU], &options);
        assert_ne!(cpu.sha256(), gpu.sha256(), "their gradients differ, or this shows nothing");

        train(&both, &[CPU, GPU], &options);
        let (summary, journal) = (both.summary(), both.journal());
        // Every replica's digest was compared with the coordinator's after every step.
        assert!(events(&journal, "lost").is_empty(), "{journal:?}");
        let steps = events(&journal, "step");
        assert_eq!((steps.len(), summary["samples_lost"].as_u64()), (40, Some(0)));
        assert!(steps.iter().any(|step| step["workers"] == 2), "both took part");
        assert_eq!(summary["audits"], 0, "unlike bits are not compared");
    }
}

/// The reference network: an engine of Tally's own beside one of Burn's.
#[test]
fn rep_1_the_reference_network_trains_in_a_mixed_cluster() {
    let run = RunDir::new();
    let options = ["--epochs", "1", "--batch-size", "16", "--train-limit", "160"];
    train(&run, &[CPU, GPU], &options);
    let journal = run.journal();
    let steps = events(&journal, "step");
    assert_eq!(steps.len(), 10);
    assert!(steps.iter().any(|step| step["workers"] == 2) && events(&journal, "lost").is_empty());
}
