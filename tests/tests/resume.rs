//! Coordinators are stopped, killed and started again: **RESUME-1**, **CKPT-1**.
//!
//! Whatever happened in between, a run ends in the bits of the run that was left alone, and
//! its journal has the same steps with the same digests, each once.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Write as _;
use std::path::Path;

use tally_tools::cluster::{
    Coordinator, Output, Relay, RunDir, Signal, Worker, digests, events, run as run_binary, train_local,
};

/// Four epochs of eight steps, the last one short: 32 steps, on the way down of the rate.
const OPTIONS: [&str; 10] = [
    "--batch-size",
    "64",
    "--train-limit",
    "500",
    "--test-limit",
    "12",
    "--epochs",
    "4",
    "--checkpoint-every",
    "3",
];
const STEPS: u64 = 32;
/// A step takes some tens of milliseconds, so that it can be interrupted.
const SLOW: &str = "synthetic:parameters=50000,us-per-sample=800";

fn options(model: &str) -> Vec<&str> {
    [&["--model", model], &OPTIONS[..]].concat()
}

fn baseline(model: &str) -> RunDir {
    train_local(1, &options(model))
}

/// Starts a run with local workers, and stops it after at least `step` steps.
fn stopped_at(step: u64) -> (RunDir, Output) {
    let run = RunDir::new();
    let cluster = ["--local", "--workers", "2", "--run-dir", run.arg()];
    let coordinator = Coordinator::start([&cluster[..], &options(SLOW)].concat());
    run.wait_for_step(step);
    coordinator.signal(Signal::INT);
    coordinator.succeed();
    let output = coordinator.output();
    (run, output)
}

fn resume(run: &RunDir) -> Coordinator {
    Coordinator::start(["--local", "--workers", "3", "--resume", run.arg()])
}

/// The whole run is there, with the bits of the baseline.
fn equals_baseline(run: &RunDir, model: &str) {
    let whole = baseline(model);
    assert_eq!(run.summary()["steps"], STEPS);
    assert_eq!(digests(&run.journal()), digests(&whole.journal()));
    assert_eq!(run.sha256(), whole.sha256());
    let (summary, whole) = (run.summary(), whole.summary());
    for key in ["outcome", "epochs", "test", "samples", "samples_lost", "samples_duplicated", "digest"] {
        assert_eq!(summary[key], whole[key], "{key}");
    }
}

fn last_step(run: &RunDir) -> u64 {
    digests(&run.journal()).len() as u64
}

fn refused_resume(options: &[&str]) -> Output {
    let ports = ["--local", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    run_binary("coordinator", [&ports[..], options].concat())
}

#[test]
fn resume_1_an_interrupted_run_ends_in_the_same_bits() {
    // Inside the second epoch.
    let (run, output) = stopped_at(10);
    let step = last_step(&run);
    assert!((10..STEPS).contains(&step), "stopped at step {step}");
    let command = format!("coordinator --resume {}", run.arg());
    assert!(output.stdout.contains(&command), "{}", output.stdout);
    assert_eq!((&run.summary()["outcome"], &run.summary()["steps"]), (&"stopped".into(), &step.into()));
    let newest = run.checkpoints().pop().unwrap();
    assert_eq!(newest.file_name().unwrap().to_string_lossy(), format!("step-{step:08}"));

    let resumed = resume(&run);
    resumed.succeed();
    assert!(resumed.stderr().contains(&format!("resuming at step {step}")), "{}", resumed.stderr());
    equals_baseline(&run, SLOW);
}

/// A stop and a resume in the middle of the real arithmetic: Burn's own state is nowhere
/// but in the checkpoint.
#[test]
fn resume_1_a_small_network_ends_in_the_same_bits() {
    let run = RunDir::new();
    let cluster = ["--workers", "1", "--run-dir", run.arg()];
    let coordinator = Coordinator::start([&cluster[..], &options("mlp")].concat());
    let worker = Worker::start(coordinator.grpc_port(), [""; 0]);
    run.wait_for_step(1);
    coordinator.signal(Signal::TERM);
    coordinator.succeed();
    worker.succeed();
    resume(&run).succeed();
    equals_baseline(&run, "mlp");
}

/// Killed again and again, each time with a line half written; the workers find every new
/// coordinator by themselves.
#[test]
fn resume_1_a_killed_coordinator_ends_in_the_same_bits() {
    let run = RunDir::new();
    let cluster = ["--workers", "2", "--run-dir", run.arg()];
    let mut coordinator = Coordinator::start([&cluster[..], &options(SLOW)].concat());
    let relay = Relay::start(coordinator.grpc_port());
    let workers = Worker::start_many(relay.port(), 2);
    for (kills, step) in [5, 13].into_iter().enumerate() {
        run.wait_for_step(step);
        coordinator.kill9();
        assert!(last_step(&run) < STEPS, "it was killed before its end");
        let journal = run.path().join("journal.jsonl");
        let mut torn = fs::OpenOptions::new().append(true).open(journal).unwrap();
        torn.write_all(br#"{"event":"step","step":99,"lo"#).unwrap();
        coordinator = Coordinator::start(["--workers", "2", "--resume", run.arg()]);
        relay.retarget(coordinator.grpc_port());
        assert!(coordinator.stderr().contains("resuming at step "), "{}", coordinator.stderr());
        run.wait_for("start", |l| l["event"] == "start" && l["incarnation"] == kills as u64 + 2);
    }
    coordinator.succeed();
    for worker in &workers {
        worker.succeed();
        assert!(worker.stderr().contains("trying again"), "{}", worker.stderr());
    }
    equals_baseline(&run, SLOW);
}

#[test]
fn ckpt_1_a_damaged_newest_checkpoint_is_skipped() {
    let (run, _) = stopped_at(10);
    let checkpoints = run.checkpoints();
    let newest = checkpoints.last().unwrap();
    flip_a_bit(&newest.join("model.safetensors"));
    let resumed = resume(&run);
    resumed.succeed();
    let name = newest.file_name().unwrap().to_string_lossy();
    let warned = |line: &str| line.contains("skipped a damaged checkpoint") && line.contains(&*name);
    assert!(resumed.stderr().lines().any(warned), "{}", resumed.stderr());
    assert!(resumed.stderr().contains("again"), "{}", resumed.stderr());
    equals_baseline(&run, SLOW);
}

#[test]
fn ckpt_1_a_run_without_a_whole_checkpoint_starts_again_from_its_seed() {
    let (run, _) = stopped_at(4);
    for checkpoint in run.checkpoints() {
        fs::remove_file(checkpoint.join("manifest.json")).unwrap();
    }
    let resumed = resume(&run);
    resumed.succeed();
    assert!(resumed.stderr().contains("resuming at step 0, computing steps 1 to"), "{}", resumed.stderr());
    equals_baseline(&run, SLOW);
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// What decides the bits cannot change, and nothing is lost by trying.
#[test]
fn resume_1_options_that_decide_the_bits_cannot_change() {
    let (run, _) = stopped_at(2);
    let before = run.journal();
    for (option, value) in [
        ("--seed", "2"),
        ("--batch-size", "32"),
        ("--microbatches", "4"),
        ("--learning-rate", "0.5"),
        ("--clip-norm", "none"),
        ("--lr-schedule", "constant"),
        ("--wire-dtype", "bf16"),
        ("--model", "mlp"),
        ("--train-limit", "400"),
        ("--epochs", "5"),
    ] {
        let output = refused_resume(&["--resume", run.arg(), option, value]);
        output.is_refused(&[option, "cannot change on --resume"]);
    }
    assert_eq!(run.journal(), before);
    resume(&run).succeed();
    equals_baseline(&run, SLOW);
}

#[test]
fn a_run_directory_in_use_is_refused() {
    let run = RunDir::new();
    let first = Coordinator::start([&["--run-dir", run.arg()], &options(SLOW)[..]].concat());
    // It says this once the directory is its own; and it waits for a worker for ever.
    first.grpc_port();
    refused_resume(&["--resume", run.arg()]).is_refused(&[run.arg(), "in use by another coordinator"]);
    refused_resume(&["--run-dir", run.arg()]).is_refused(&[run.arg(), "in use by another coordinator"]);
    assert!(first.is_running());
}

#[test]
fn a_directory_with_a_run_is_not_overwritten() {
    let (run, _) = stopped_at(2);
    let before = run.journal();
    refused_resume(&["--run-dir", run.arg()]).is_refused(&[run.arg(), "--resume"]);
    assert_eq!(run.journal(), before);
}

#[test]
fn what_is_no_run_directory_cannot_be_resumed() {
    let run = RunDir::new();
    refused_resume(&["--resume", run.arg()]).is_refused(&[
        run.arg(),
        "is no run directory",
        "there is nothing by that name",
    ]);
    assert!(!run.path().exists());
    fs::create_dir(run.path()).unwrap();
    refused_resume(&["--resume", run.arg()]).is_refused(&[
        run.arg(),
        "is no run directory",
        "it has no run.json",
    ]);
    assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0, "nothing was put into it");
}

/// A journal with a line that no crash leaves behind is not guessed at.
#[test]
fn resume_1_a_damaged_journal_is_named() {
    let (run, _) = stopped_at(3);
    let path = run.path().join("journal.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen("\"step\":2,", "\"step\":", 1)).unwrap();
    refused_resume(&["--resume", run.arg()]).is_refused(&["journal.jsonl is damaged at line"]);
    fs::write(&path, whole).unwrap();
    assert!(!events(&run.journal(), "end").is_empty());
    resume(&run).succeed();
}
