//! The GPU's way, kernels and all, on a CPU in place of a GPU; see `tally_tests::cuda_on_cpu`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tally_tests::cuda_on_cpu::CudaOnCpu;
use tally_tools::cluster::{Coordinator, RunDir, Worker, events, tool};

/// A part's deadline in seconds: a CPU takes minutes for what a GPU does in seconds.
const PATIENT: [&str; 2] = ["--deadline", "1000"];

fn cuda() -> CudaOnCpu {
    CudaOnCpu::new(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// `gpu-check` with these variables in its environment, and what it found.
fn gpu_check(line: &str, variables: &[(&str, &str)]) -> (Output, Value) {
    let mut command = Command::new(tool("gpu-check"));
    command.args(line.split(' ')).args(PATIENT).envs(cuda().environment()).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
    (output, found)
}

fn is_good(line: &str, variables: &[(&str, &str)]) -> Value {
    let (output, found) = gpu_check(line, variables);
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}{}", said[0], said[1]);
    assert_eq!(found["failures"], serde_json::json!([]), "{}", said[0]);
    assert!(found["device"].as_str().unwrap().contains("Tally's kernels"), "{}", said[0]);
    found
}

/// SUM-1, REP-1: golden values to float32's last bits, the host's updates, equal gradients again and as a subtree.
#[test]
fn sum_1_float32_kernels_compute_what_they_must() {
    let found = is_good("--precisions f32 --only golden,update,repetition --batches 8 --repeats 1", &[]);
    assert_eq!(found["updates"][0]["steps"], 3);
    assert_eq!(found["repetition"][0]["different"], serde_json::json!([[1, 0], [8, 0]]));
    assert_eq!(found["repetition"][0]["subtree_is_its_leaves"], true);
}

/// The products of tensor units, each with its rounding, with a block's warps from the last to the first.
#[test]
fn tensor_kernels_compute_what_they_must() {
    for precision in ["tf32", "bf16"] {
        is_good(&format!("--precisions {precision} --only update"), &[("CUDA_ON_CPU_REVERSE", "1")]);
    }
}

/// The kernels' variants have the golden values, and the default's bits where they must. A second stream that does not wait for the
/// first would show here.
fn variants_are_good(precision: &str, variants: &[&str]) {
    let mut command = Command::new(tool("gpu-check"));
    command.args(["--precisions", precision, "--only", "golden", "--variants", &variants.join(" ")]);
    let output = command.args(PATIENT).envs(cuda().environment()).output().unwrap();
    let [lines, log] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{lines}{log}");
    let found: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(found["golden"].as_array().unwrap().len(), variants.len(), "{lines}");
    let last = format!(", {})", variants.last().unwrap());
    assert!(found["device"].as_str().unwrap().contains(&last), "{lines}");
}

// Two tests, because one of them takes minutes and uses one core.
#[test]
fn variants_for_tf32_compute_what_they_must() {
    variants_are_good("tf32", &["default", "ldmatrix,streams", "wide", "wgmma"]);
}

#[test]
fn variants_for_bf16_compute_what_they_must() {
    variants_are_good("bf16", &["half", "half,wide,streams", "half,wgmma"]);
}

/// Kernels can be changed where there is no Rust, and their worker says so.
#[test]
fn kernels_are_taken_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = gpu_check(&format!("--sources {}", folder.path().display()), &[]);
    assert!(output.status.success());
    let kernels = folder.path().display().to_string();
    let variables = [("TALLY_KERNELS", kernels.as_str())];
    let found = is_good("--precisions f32 --only update", &variables);
    assert!(found["device"].as_str().unwrap().contains("kernels of a folder"), "{found}");
    // With another number in it, the kernel computes another digest than the host.
    let file = folder.path().join("update.cu");
    let changed = std::fs::read_to_string(&file).unwrap().replace("0x9E3779B97F4A7C15", "0x9E3779B97F4A7C17");
    std::fs::write(&file, changed).unwrap();
    let (output, found) = gpu_check("--precisions f32 --only update", &variables);
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(found["failures"][0].as_str().unwrap().contains("digest"), "{found}");
}

/// The driver on a CPU refuses a kernel whose copies are not aligned, as a GPU would.
#[test]
fn a_copy_that_is_not_aligned_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().display().to_string();
    let (output, _) = gpu_check(&format!("--sources {kernels}"), &[]);
    assert!(output.status.success());
    let file = folder.path().join("convolution.cu");
    let changed = std::fs::read_to_string(&file).unwrap().replace("(DEPTH + PER_COPY)", "(DEPTH + 1)");
    std::fs::write(&file, changed).unwrap();
    let (output, found) = gpu_check("--precisions f32 --only update", &[("TALLY_KERNELS", &kernels)]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(log.contains("an asynchronous copy of 16 bytes is not aligned"), "{log}");
}

/// Where the kernels can't compute, every part says why, in a line each.
#[test]
fn a_gpu_that_is_too_old_or_too_small_says_so() {
    for (variable, value, words) in [
        ("CUDA_ON_CPU_CAPABILITY", "75", "capability 75: they need 80 or more"),
        ("CUDA_ON_CPU_MEMORY", "100000000", "not enough memory"),
    ] {
        let (output, found) = gpu_check("--precisions f32 --only golden,update", &[(variable, value)]);
        assert_eq!(output.status.code(), Some(1), "{found}");
        let failures = found["failures"].as_array().unwrap();
        assert!(failures.iter().all(|failure| failure.as_str().unwrap().contains(words)), "{found}");
        assert_eq!(failures.len(), 2, "{found}");
    }
}

/// A short run of workers with these options, each on the device.
fn train(workers: &[&[&str]], options: &[&str]) -> RunDir {
    let run = RunDir::new();
    let count = workers.len().to_string();
    let small = ["--epochs", "1", "--batch-size", "8", "--train-limit", "16", "--test-limit", "4"];
    let arguments = [&["--workers", &count, "--run-dir", run.arg()], &small[..], options].concat();
    let coordinator = Coordinator::start(arguments);
    let environment = cuda().environment();
    let variables = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let start = |options: &&[&str]| Worker::start_with(coordinator.grpc_port(), &variables, options.iter());
    let workers: Vec<Worker> = workers.iter().map(start).collect();
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
    run
}

const GPU: [&str; 4] = ["--backend", "cuda", "--precision", "f32"];

/// SUM-1: the same bits with one worker as with two that take the leaves as they come.
#[test]
fn sum_1_any_number_of_gpus_has_the_same_bits() {
    for wire in ["f32", "bf16"] {
        let options = ["--wire-dtype", wire, "--microbatches", "4"];
        let one = train(&[&GPU], &options);
        let two = train(&[&GPU, &GPU], &options);
        assert_eq!(one.sha256(), two.sha256(), "{wire}");
    }
}

/// REP-1: a GPU beside a CPU, with each optimizer.
#[test]
fn rep_1_a_gpu_and_a_cpu_train_together() {
    for optimizer in [
        &["--optimizer", "sgd", "--nesterov", "--weight-decay", "0.01"][..],
        &["--optimizer", "adam", "--amsgrad"],
        &["--optimizer", "adamw"],
        &["--optimizer", "rmsprop", "--centered", "--momentum", "0.5"],
        &["--optimizer", "lion", "--clip-norm", "none", "--clip-value", "0.01"],
    ] {
        let run = train(&[&GPU, &["--backend", "cpu"]], optimizer);
        let journal = run.journal();
        let steps = events(&journal, "step");
        assert_eq!(steps.len(), 2);
        assert!(events(&journal, "lost").is_empty(), "{optimizer:?}: {journal:?}");
        assert!(steps.iter().any(|step| step["workers"] == 2), "{optimizer:?}: {journal:?}");
    }
}
