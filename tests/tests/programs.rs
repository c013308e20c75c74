//! Burn programs keep the promises of the built-in one: the examples are trained, and a program with faults is caught.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_flex::{Flex, FlexDevice};
use burn_store::{ModuleSnapshot as _, SafetensorsStore};
use tally_tests::programs::Program;
use tally_tools::cluster::{RunDir, Signal, digests, events};

/// Free ones.
const PORTS: [&str; 4] = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

/// What may not differ.
fn outcome(run: &RunDir) -> (String, Vec<String>, String) {
    (run.sha256(), digests(&run.journal()), run.summary()["test"].to_string())
}

/// SUM-1: one worker, three workers, two in one process, and one whose partner is killed give the same bits.
fn any_workers_give_the_same_bits(program: &Program, steps: u64) {
    let mut seen = BTreeSet::from([outcome(&program.train(1, &[]))]);
    let three = program.train(3, &[]);
    assert_eq!(three.summary()["steps"], steps);
    let contributed = events(&three.journal(), "step").iter().filter_map(|s| s["workers"].as_u64()).max();
    assert_eq!(contributed, Some(3), "workers that took part");
    seen.insert(outcome(&three));
    seen.insert(outcome(&program.train_local(2)));
    seen.insert(outcome(&with_a_worker_killed(program)));
    seen.insert(outcome(&with_the_coordinator_killed(program)));
    assert_eq!(seen.len(), 1, "{seen:#?}");
}

fn with_a_worker_killed(program: &Program) -> RunDir {
    let run = RunDir::new();
    let coordinator = program.coordinator(&["--workers", "2", "--run-dir", run.arg()]);
    let workers = [(); 2].map(|()| program.worker(coordinator.grpc_port(), &[]));
    run.wait_for_step(2);
    workers[0].signal(Signal::KILL);
    coordinator.succeed();
    workers[1].succeed();
    assert_eq!(events(&run.journal(), "lost").len(), 1, "it was lost before the end");
    run
}

fn with_the_coordinator_killed(program: &Program) -> RunDir {
    let run = RunDir::new();
    let coordinator =
        program.coordinator(&["--workers", "1", "--run-dir", run.arg(), "--checkpoint-every", "2"]);
    let worker = program.worker(coordinator.grpc_port(), &[]);
    run.wait_for_step(3);
    coordinator.signal(Signal::KILL);
    worker.signal(Signal::KILL);
    let _ = coordinator.output();
    let resumed = program.coordinator(&["--resume", run.arg()]);
    let worker = program.worker(resumed.grpc_port(), &[]);
    resumed.succeed();
    worker.succeed();
    run
}

#[test]
fn sum_1_the_regression_has_the_same_bits_for_any_workers() {
    any_workers_give_the_same_bits(&Program::new("regression", &["--epochs", "1"]), 32);
}

/// Augmentation, dropout, BatchNorm and AdamW included.
#[test]
fn sum_1_fashion_has_the_same_bits_for_any_workers() {
    let data = tempfile::tempdir().unwrap();
    write_pictures(data.path(), "train", 200);
    write_pictures(data.path(), "t10k", 50);
    let options = ["--pictures", data.path().to_str().unwrap(), "--width", "4", "--epochs", "1"];
    let program = Program::new("fashion", &[&options[..], &["--batch-size", "16"]].concat());
    any_workers_give_the_same_bits(&program, 13);
    // Workers that have the data are sent numbers only, and compute the same.
    assert_eq!(program.train(2, &["--data", "local"]).sha256(), program.train(1, &[]).sha256());
}

/// Each optimizer, with settings that keep as many moments as it can.
#[test]
fn sum_1_every_optimizer_has_the_same_bits_for_any_workers() {
    for optimizer in [
        &["sgd", "--nesterov", "--weight-decay", "0.01"][..],
        &["adam", "--amsgrad", "--beta2", "0.95", "--weight-decay", "0.01"],
        &["adamw", "--cautious-weight-decay", "--clip-value", "0.05"],
        &["rmsprop", "--centered", "--momentum", "0.5"],
        &["lion", "--weight-decay", "0.1", "--maximize=false"],
    ] {
        let options = [&["--epochs", "1", "--learning-rate", "0.003", "--optimizer"], optimizer].concat();
        any_workers_give_the_same_bits(&Program::new("regression", &options), 32);
    }
}

/// RESUME-1: the rates of a scheduler of Burn's, also of the steps after a resume, and recomputed by `verify`.
#[test]
fn resume_1_a_schedule_of_burns_has_the_same_bits_for_any_workers() {
    let program = Program::new("faulty", &["--fault", "schedule"]);
    any_workers_give_the_same_bits(&program, 12);
    let run = program.train(1, &[]);
    let rates: Vec<f64> =
        events(&run.journal(), "step").iter().filter_map(|step| step["learning_rate"].as_f64()).collect();
    // From 0.1 along a line to 0.01 at step 20.
    assert_eq!(rates.len(), 12);
    assert!(rates.windows(2).all(|pair| ((pair[0] - pair[1]) - 0.0045).abs() < 1e-6), "{rates:?}");
    let verified = Program::new("faulty", &[]).run(&["verify", run.arg()]);
    assert!(verified.status.success(), "{}{}", verified.stdout, verified.stderr);
}

/// RESUME-1: a run does not go on with other rates than it began with.
#[test]
fn resume_1_other_rates_than_the_runs_are_refused() {
    let program = Program::new("faulty", &["--fault", "other-schedule", "--epochs", "1"]);
    let run = program.train(1, &[]);
    let resumed = program.run(&[&["coordinator", "--resume", run.arg()], &PORTS[..]].concat());
    resumed.is_refused(&["cannot be resumed", "other learning rates"]);
}

/// Dropout, AdamW, and texts of several lengths that weigh by their letters.
#[test]
fn sum_1_the_transformer_has_the_same_bits_for_any_workers() {
    let options =
        ["--context", "40", "--width", "16", "--layers", "1", "--epochs", "2", "--batch-size", "16"];
    any_workers_give_the_same_bits(&Program::new("characters", &options), 10);
}

/// Frozen tensors are in the state and in checkpoints; they do not change, and `--init-partial` finds them.
#[test]
fn sum_1_a_new_head_on_a_frozen_body_has_the_same_bits_for_any_workers() {
    let data = tempfile::tempdir().unwrap();
    write_pictures(data.path(), "train", 120);
    write_pictures(data.path(), "t10k", 30);
    let pictures = ["--pictures", data.path().to_str().unwrap(), "--width", "4", "--batch-size", "16"];
    let body = Program::new("fashion", &[&pictures[..], &["--epochs", "1"]].concat()).train(1, &[]);
    let best = body.path().join("checkpoints/last");
    let init = ["--init", best.to_str().unwrap(), "--init-partial", "--epochs", "1"];
    let program = Program::new("fine-tuning", &[&pictures[..], &init].concat());
    any_workers_give_the_same_bits(&program, 8);
    let run = program.train(2, &[]);
    let tensors = |run: &RunDir| {
        let bytes = std::fs::read(run.path().join("checkpoints/last/model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let of =
            |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| (name, tensor.data().to_vec());
        file.tensors().into_iter().map(of).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (before, after) = (tensors(&body), tensors(&run));
    let frozen = ["conv1.weight", "conv1.bias", "norm1.gamma", "conv2.weight", "norm2.beta", "hidden.weight"];
    assert!(frozen.iter().all(|name| before[*name] == after[*name]), "they are those of the checkpoint");
    assert_ne!(before["norm1.running_mean"], after["norm1.running_mean"], "running statistics go on");
    assert!(after.contains_key("head.weight") && !after.contains_key("output.weight"));
    let verified = Program::new("fine-tuning", &[]).run(&["verify", run.arg()]);
    assert!(verified.status.success(), "{}{}", verified.stdout, verified.stderr);
}

/// Pictures in which the label is the row that is bright.
fn write_pictures(directory: &Path, half: &str, count: u32) {
    let gz = |name: String, header: &[u32], bytes: Vec<u8>| {
        let file = File::create(directory.join(name)).unwrap();
        let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        header.iter().for_each(|word| file.write_all(&word.to_be_bytes()).unwrap());
        file.write_all(&bytes).unwrap();
        file.finish().unwrap();
    };
    let picture = |index: u32| {
        (0..28 * 28u32).map(move |at| if at / 28 == index % 10 { 200 } else { (at * index % 17) as u8 })
    };
    gz(
        format!("{half}-images-idx3-ubyte.gz"),
        &[2051, count, 28, 28],
        (0..count).flat_map(picture).collect(),
    );
    gz(format!("{half}-labels-idx1-ubyte.gz"), &[2049, count], (0..count).map(|i| (i % 10) as u8).collect());
}

#[test]
fn check_passes_a_sound_program() {
    let output = Program::new("faulty", &[]).run(&["check"]);
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert_eq!(output.stdout.lines().filter(|line| line.starts_with("ok ")).count(), 7, "{}", output.stdout);
    assert!(!output.stdout.contains("FAIL"), "{}", output.stdout);
}

#[test]
fn check_catches_planted_faults() {
    for (fault, words) in [
        ("unseeded-batcher", &["computed again", "rand::rng()"][..]),
        ("hash-map-order", &["another process", "HashMap"]),
        ("lossy-item", &["serialisation", "item 0"]),
        ("stateful-batcher", &["computed again", "keeps"]),
        ("neighbours", &["each by itself", "contrastive"]),
        ("workers-mask", &["another process", "digests of gradient"]),
        ("own-statistics", &["computed again", "keeps"]),
        ("other-data", &["opened again", "fingerprints"]),
    ] {
        let output = Program::new("faulty", &["--fault", fault]).run(&["check"]);
        assert_eq!(output.status.code(), Some(1), "{fault}: {}{}", output.stdout, output.stderr);
        let failed = output.stdout.split("FAIL").skip(1).collect::<String>();
        for word in words {
            assert!(failed.contains(word), "{fault}, {word}: {}{}", output.stdout, output.stderr);
        }
    }
    let output = Program::new("faulty", &["--fault", "unused-parameter"]).run(&["check"]);
    assert!(output.status.success() && output.stdout.contains("unused.weight"), "{}", output.stdout);
}

#[test]
fn a_program_that_cannot_be_trained_is_refused_in_one_line() {
    for (fault, words) in [
        ("empty-data", &["training samples", "empty"][..]),
        ("frozen", &["no parameter", "gradient"]),
        ("lossy-item", &["training samples", "item 0", "written differently"]),
        ("clip-each-tensor", &["clips each tensor by itself", ".clip_norm"]),
        ("empty-group", &["the group \"heads\"", "no parameter"]),
        ("no-schedule", &["learning rates are the program's", ".lr_scheduler"]),
        ("two-groups", &["layer.bias", "\"biases\"", "\"all\""]),
        ("negative-rate", &["learning rate -", "at step 2"]),
    ] {
        let run = RunDir::new();
        let program = Program::new("faulty", &["--fault", fault]);
        let output = program.run(&[&["local", "--run-dir", run.arg()], &PORTS[..]].concat());
        output.is_refused(words);
        assert!(!run.path().exists(), "{fault}: no run was begun");
    }
    let other = Program::new("faulty", &["--fault", "nan"]);
    let run = RunDir::new();
    let output = other.run(&[&["local", "--run-dir", run.arg()], &PORTS[..]].concat());
    output.is_refused(&["diverged at step 1", "layer.weight"]);
}

#[test]
fn a_metric_that_counts_nothing_is_said() {
    let run = RunDir::new();
    let program = Program::new("faulty", &["--fault", "zero-denominator", "--epochs", "1"]);
    let coordinator = program.coordinator(&["--workers", "1", "--run-dir", run.arg()]);
    program.worker(coordinator.grpc_port(), &[]).succeed();
    let output = coordinator.output();
    assert!(output.status.success(), "{}", output.stderr);
    let said =
        output.stderr.lines().filter(|line| line.contains("nearness") && line.contains("denominator of 0"));
    assert_eq!(said.count(), 1, "{}", output.stderr);
}

#[derive(Module, Debug)]
struct Curve<B: Backend> {
    hidden: Linear<B>,
    output: Linear<B>,
}

/// The lines of docs/own-program.md that load a checkpoint without Tally.
#[test]
fn a_checkpoint_loads_into_the_module_without_tally() {
    let run = Program::new("regression", &["--epochs", "1", "--width", "8"]).train(1, &[]);
    let path = run.path().join("checkpoints/best/model.safetensors");
    let device = FlexDevice;
    let linear = |from, to| LinearConfig::new(from, to).init(&device);
    let mut curve = Curve::<Flex> { hidden: linear(1, 8), output: linear(8, 1) };
    let mut store = SafetensorsStore::from_file(&path);
    let result = curve.load_from(&mut store).unwrap();
    assert_eq!((result.applied.len(), result.missing.len(), result.unused.len()), (4, 0, 0));
    let bytes = std::fs::read(&path).unwrap();
    let weight = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weight = weight.tensor("hidden.weight").unwrap().data().to_vec();
    let loaded: Vec<u8> =
        curve.hidden.weight.val().into_data().iter::<f32>().flat_map(f32::to_le_bytes).collect();
    assert_eq!(loaded, weight);
}

/// The second worker that fails at the same sample ends the run, which keeps its last good state.
#[test]
fn a_panic_in_the_program_ends_the_run_with_its_last_state() {
    let program = Program::new("faulty", &["--fault", "panic", "--batch-size", "8", "--microbatches", "2"]);
    let run = RunDir::new();
    let coordinator = program.coordinator(&["--workers", "2", "--run-dir", run.arg()]);
    let workers = [(); 2].map(|()| program.worker(coordinator.grpc_port(), &[]));
    let output = coordinator.output();
    let [first, second] = workers.map(|worker| worker.output());
    for ended in [&first, &second] {
        assert!(!ended.status.success(), "{}", ended.stderr);
        assert!(ended.stderr.contains("faulty/src/main.rs:"), "{}", ended.stderr);
    }
    let error = output.stderr.lines().last().unwrap();
    for word in ["two workers", "faulty/src/main.rs:", "this sample cannot be read", "samples", "--resume"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let steps = digests(&run.journal()).len();
    assert_eq!(run.checkpoints().len(), usize::from(steps > 0), "the last good state, after {steps} steps");
}

#[test]
fn a_worker_of_another_program_is_refused() {
    let program = Program::new("faulty", &[]);
    let run = RunDir::new();
    let coordinator = program.coordinator(&["--workers", "1", "--run-dir", run.arg()]);
    let stranger = Program::new("regression", &[]).worker(coordinator.grpc_port(), &[]);
    stranger.output().is_refused(&["\"faulty\"", "\"regression\""]);
    program.worker(coordinator.grpc_port(), &[]).succeed();
    coordinator.succeed();
}

#[test]
fn other_data_on_a_worker_is_refused_at_join() {
    let program = Program::new("faulty", &["--fault", "other-data", "--data", "local"]);
    let run = RunDir::new();
    let coordinator = program.coordinator(&["--workers", "1", "--run-dir", run.arg()]);
    let worker = program.worker(coordinator.grpc_port(), &[]);
    worker.output().is_refused(&["training samples", "fingerprint", "--data local"]);
    coordinator.signal(Signal::KILL);
}

/// RESUME-1: arguments that are given again are compared, and those that are not are the run's.
#[test]
fn resume_1_the_programs_own_arguments_are_compared() {
    let program = Program::new("regression", &[]);
    let run = Program::new("regression", &["--epochs", "1", "--width", "8"]).train(1, &[]);
    let resume =
        ["coordinator", "--resume", run.arg(), "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    program.run(&[&resume[..], &["--width", "9"]].concat()).is_refused(&["--width 9", "8", "--resume"]);
    let again = program.run(&resume);
    assert!(again.status.success() && again.stderr.contains("done already"), "{}", again.stderr);
    let verified = program.run(&["verify", run.arg()]);
    assert!(verified.status.success(), "{}{}", verified.stdout, verified.stderr);
}
