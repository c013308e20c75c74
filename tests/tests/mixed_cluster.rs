//! A cluster of unlike workers, as a GPU beside a CPU: gradients have other bits, replicas have not (**REP-1**).

#![allow(clippy::unwrap_used, clippy::panic)]

use tally_tests::cluster::{Coordinator, RunDir, Worker, events, run};

const CPU: [&str; 4] = ["--name", "cpu", "--backend", "cpu"];
/// Computes as a GPU does, with a CPU's arithmetic.
const GPU: [&str; 4] = ["--name", "gpu", "--backend", "rehearsal"];

fn train(run: &RunDir, workers: &[[&str; 4]], options: &[&str]) -> Vec<Worker> {
    let count = workers.len().to_string();
    let arguments = [&["--workers", &count, "--run-dir", run.arg(), "--test-limit", "20"], options].concat();
    let coordinator = Coordinator::start(arguments);
    let workers: Vec<Worker> =
        workers.iter().map(|options| Worker::start(coordinator.grpc_port(), options)).collect();
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
    workers
}

const SMALL: [&str; 6] = ["--model", "mlp", "--epochs", "2", "--train-limit", "1280"];

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

/// The reference network: Tally's kernels beside Burn's, which are several times slower here.
#[test]
fn live_1_a_mixed_cluster_is_balanced_by_speed() {
    let directory = RunDir::new();
    let coordinator = Coordinator::start(
        [
            &["--workers", "2", "--run-dir", directory.arg(), "--epochs", "1", "--train-limit", "960"],
            &["--test-limit", "1"][..],
        ]
        .concat(),
    );
    let port = coordinator.grpc_port();
    let workers = [CPU, GPU].map(|options| Worker::start(port, [&options[..], &["--threads", "1"]].concat()));
    directory.wait_for_step(10);
    let address = format!("127.0.0.1:{port}");
    let status = run("coordinator", ["status", "--connect", &address, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let samples = |name: &str| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().find(|w| w["name"] == name).unwrap()["samples"].as_u64().unwrap()
    };
    let [cpu, gpu] = ["cpu", "gpu"].map(samples);
    assert!(cpu > gpu && gpu > 0, "the fast one computed {cpu} samples, the slow one {gpu}");
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
    assert!(events(&directory.journal(), "lost").is_empty());
}
