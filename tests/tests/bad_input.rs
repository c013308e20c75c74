//! What cannot work is refused in one line that names the thing and the remedy, with an
//! exit code that is not 0, no panic, no backtrace, and nothing lost or left behind.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tally_mnist::{ModelSpec, manifest};
use tally_tools::cluster::{
    Coordinator, Output, RunDir, Signal, Worker, events, run as run_binary, train_local,
};
use tempfile::TempDir;

/// A small run that would succeed, but for what is added to it.
fn train(options: &[&str]) -> (RunDir, Output) {
    let run = RunDir::new();
    let small = ["--epochs", "1", "--test-limit", "5", "--backend", "cpu", "--threads", "1"];
    let cluster = ["--local", "--run-dir", run.arg()];
    let model = if options.contains(&"--model") { &[][..] } else { &["--model", "mlp"] };
    let limit = if options.contains(&"--train-limit") { &[][..] } else { &["--train-limit", "10"] };
    let output = Coordinator::start([&cluster[..], &small, model, limit, options].concat()).output();
    (run, output)
}

/// Refused before anything was made.
fn is_refused_before_it_starts(options: &[&str], words: &[&str]) {
    let (run, output) = train(options);
    output.is_refused(words);
    assert!(!run.path().exists(), "a run directory was made for a run that cannot start: {options:?}");
}

// ---- Data ----

const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

fn idx(header: &[u32], values: impl Iterator<Item = usize>) -> Vec<u8> {
    header.iter().flat_map(|word| word.to_be_bytes()).chain(values.map(|v| v as u8)).collect()
}

/// A directory of 12 training and 6 test samples, in which one file has other content.
fn data(other: Option<(usize, Vec<u8>)>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let images = |n: usize| idx(&[0x803, n as u32, 28, 28], 0..n * 784);
    let labels = |n: usize| idx(&[0x801, n as u32], (0..n).map(|i| i % 10));
    let mut files = [images(12), labels(12), images(6), labels(6)];
    if let Some((at, content)) = other {
        files[at] = content;
    }
    for (name, content) in NAMES.iter().zip(files) {
        fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

#[test]
fn own_idx_files_of_any_count_are_taken() {
    let directory = data(None);
    let (run, output) = train(&["--data-dir", directory.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(run.summary()["samples"], 10);
}

#[test]
fn wrong_idx_files_are_named_with_what_is_wrong() {
    let images = idx(&[0x803, 12, 28, 28], 0..12 * 784);
    let labels = idx(&[0x801, 12], 0..10);
    for (at, content, words) in [
        (0, images[..images.len() - 100].to_vec(), "ends after 9324 of 9424 bytes"),
        (0, images[..7].to_vec(), "ends after"),
        (0, Vec::new(), "ends after 0 of"),
        (1, labels, "ends after 18 of 20 bytes"),
        (2, idx(&[0x801, 6, 28, 28], 0..6 * 784), "starts with 0x00000801, not with the 0x00000803"),
        (3, b"<!DOCTYPE html>".to_vec(), "starts with 0x3c21444f, not with the 0x00000801"),
        (0, idx(&[0x803, 12, 27, 28], 0..12 * 27 * 28), "27×28 pixels"),
        (2, idx(&[0x803, 6, 28, 27], 0..6 * 27 * 28), "28×27 pixels"),
        (1, idx(&[0x801, 12], (0..12).map(|i| i % 11)), "the label of sample 10 is 10, not a digit"),
        (3, idx(&[0x801, 0], 0..0), "0 samples"),
        (3, idx(&[0x801, u32::MAX], 0..6), "4294967295 samples"),
        (0, [&images[..], b"more"].concat(), "has more than the 9424 bytes"),
        (0, vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3], "gzip data is damaged"),
    ] {
        let directory = data(Some((at, content)));
        let file = directory.path().join(NAMES[at]);
        let option = ["--data-dir", directory.path().to_str().unwrap()];
        is_refused_before_it_starts(&option, &[file.to_str().unwrap(), words]);
    }
}

#[test]
fn images_and_labels_must_agree_in_number() {
    for (at, split) in [(1, "the training split"), (3, "the test split")] {
        let directory = data(Some((at, idx(&[0x801, 7], 0..7))));
        let option = ["--data-dir", directory.path().to_str().unwrap()];
        is_refused_before_it_starts(&option, &[split, "7 labels", "images and labels of the same set"]);
    }
}

#[test]
fn a_missing_file_is_named() {
    let directory = data(None);
    fs::remove_file(directory.path().join(NAMES[2])).unwrap();
    let path = directory.path().to_str().unwrap();
    is_refused_before_it_starts(&["--data-dir", path], &[path, NAMES[2]]);
    let nowhere = directory.path().join("nowhere");
    is_refused_before_it_starts(&["--data-dir", nowhere.to_str().unwrap()], &["nowhere", "does not exist"]);
}

// ---- Numbers ----

#[test]
fn counts_that_cannot_work_are_named() {
    for (option, value, words) in [
        ("--microbatches", "3", "power of two"),
        ("--microbatches", "0", "power of two"),
        ("--batch-size", "0", "at least one sample"),
        ("--train-limit", "0", "limit of 1 to 60000"),
        ("--train-limit", "60001", "limit of 1 to 60000"),
        ("--learning-rate", "0", "a number over 0"),
        ("--learning-rate", "NaN", "a number over 0"),
        ("--momentum", "1", "under 1"),
    ] {
        let name = if option == "--train-limit" { "training split" } else { option };
        is_refused_before_it_starts(&[option, value], &[name, words]);
    }
    let huge = ["--train-limit", "60000", "--batch-size", "60000", "--microbatches", "1"];
    is_refused_before_it_starts(&huge, &["--batch-size 60000", "raise --microbatches"]);
    // What clap itself refuses has clap's shape: the error, then where to find help.
    for (option, value) in [
        ("--workers", "0"),
        ("--epochs", "0"),
        ("--clip-norm", "0"),
        ("--model", "resnet"),
        ("--listen", "here"),
    ] {
        let (run, output) = train(&[option, value]);
        let first = output.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: ") && first.contains(option), "{}", output.stderr);
        assert!(!output.status.success() && !run.path().exists());
    }
}

// ---- Ports ----

#[test]
fn a_port_in_use_is_named_with_its_option() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for option in ["--listen", "--http-listen"] {
        is_refused_before_it_starts(&[option, &address], &[&address, option, "in use"]);
    }
}

#[test]
fn a_coordinator_that_is_not_there_is_waited_for_and_then_named() {
    // Port 1 of the loopback interface: nothing is there.
    let output = Worker::start(1, ["--connect-timeout", "1"]).output();
    output.is_refused(&["no coordinator at 127.0.0.1:1 for 1 s", "refused", "--connect-timeout"]);
    let told = output.stderr.lines().next().unwrap();
    assert!(told.contains("no coordinator at 127.0.0.1:1 yet") && told.contains("trying again"), "{told}");
}

#[test]
fn something_else_on_the_coordinators_port_is_no_coordinator() {
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in other.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let output = Worker::start(port, ["--connect-timeout", "1"]).output();
    output.is_refused(&[&format!("no coordinator at 127.0.0.1:{port}"), "check the address"]);
    // However often it tried, it said so once.
    assert_eq!(output.stderr.matches("trying again").count(), 1, "{}", output.stderr);
}

#[test]
fn an_address_that_is_none_is_refused_at_once() {
    for address in ["localhost", ":1", "http://localhost:1", "localhost:99999"] {
        let output = run_binary("worker", ["--connect", address]);
        output.is_refused(&["--connect", address, "give HOST:PORT"]);
    }
}

// ---- Checkpoints and weights ----

#[test]
fn ckpt_1_a_damaged_checkpoint_is_named() {
    let run =
        train_local(1, &["--model", "mlp", "--epochs", "1", "--train-limit", "20", "--test-limit", "5"]);
    let whole = run.checkpoints().pop().unwrap();
    let evaluate = |path: &Path| run_binary("worker", ["evaluate", "--checkpoint", path.to_str().unwrap()]);
    assert!(evaluate(&whole).status.success());
    for (file, damage, words) in [
        ("model.safetensors", Damage::Flip, "model.safetensors"),
        ("optimizer.safetensors", Damage::Flip, "optimizer.safetensors"),
        ("manifest.json", Damage::Flip, "manifest.json"),
        ("model.safetensors", Damage::Truncate, "model.safetensors"),
        ("model.safetensors", Damage::Remove, "model.safetensors is not there"),
    ] {
        let copy = tempfile::tempdir().unwrap();
        for name in ["model.safetensors", "optimizer.safetensors", "manifest.json"] {
            fs::copy(whole.join(name), copy.path().join(name)).unwrap();
        }
        damage.apply(&copy.path().join(file));
        let words = [copy.path().to_str().unwrap(), "is damaged", words, "use an older checkpoint"];
        evaluate(copy.path()).is_refused(&words);
        // As weights to start from it is no better.
        is_refused_before_it_starts(&["--init", copy.path().to_str().unwrap()], &words);
    }
    evaluate(run.path()).is_refused(&[run.arg(), "is no checkpoint", "manifest.json"]);
    let nowhere = run.path().join("checkpoints/step-00009999");
    evaluate(&nowhere).is_refused(&["step-00009999", "is no checkpoint"]);
}

#[derive(Clone, Copy)]
enum Damage {
    Flip,
    Truncate,
    Remove,
}

impl Damage {
    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Self::Flip => bytes[middle] ^= 1,
            Self::Truncate => bytes.truncate(middle),
            Self::Remove => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, bytes).unwrap();
    }
}

/// A safetensors file of the small network, one value everywhere, changed by `change`.
fn weights(directory: &Path, change: impl Fn(&str, &mut Vec<usize>, &mut f32) -> bool) -> PathBuf {
    let manifest = manifest(&ModelSpec::Mlp);
    let mut tensors = Vec::new();
    for tensor in manifest.tensors() {
        let (mut shape, mut value) = (tensor.shape.iter().map(|&d| d as usize).collect(), 0.01f32);
        if change(&tensor.name, &mut shape, &mut value) {
            let bytes: Vec<u8> = value.to_le_bytes().repeat(shape.iter().product());
            tensors.push((tensor.name.clone(), shape, bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let file = directory.join("weights.safetensors");
    fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    file
}

#[test]
fn weights_with_a_missing_or_misshapen_tensor_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = weights(directory.path(), |_, _, _| true);
    let init = ["--init", file.to_str().unwrap()];
    let (run, output) = train(&init);
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(run.summary()["steps"], 1);

    weights(directory.path(), |name, _, _| name != "sum2.bias");
    is_refused_before_it_starts(&init, &[init[1], "sum2.bias", "has no tensor", "same network"]);
    weights(directory.path(), |name, shape, _| {
        if name == "digit2.weight" {
            shape.reverse();
        }
        true
    });
    is_refused_before_it_starts(&init, &[init[1], "digit2.weight", "[64, 10]", "[10, 64]", "same network"]);
    weights(directory.path(), |name, _, value| {
        if name == "diff1.weight" {
            *value = f32::NAN;
        }
        true
    });
    is_refused_before_it_starts(&init, &[init[1], "diff1.weight", "NaN"]);
}

#[test]
fn what_is_no_safetensors_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = weights(directory.path(), |_, _, _| true);
    let whole = fs::read(&file).unwrap();
    let path = file.to_str().unwrap();
    for garbage in [&b""[..], b"garbage", &[0xff; 64], &whole[..whole.len() - 1], &whole[..100]] {
        fs::write(&file, garbage).unwrap();
        is_refused_before_it_starts(&["--init", path], &[path, "is no whole safetensors file"]);
    }
    fs::remove_file(&file).unwrap();
    is_refused_before_it_starts(&["--init", path], &[path, "cannot read"]);
    // The network of these weights is not the one asked for.
    weights(directory.path(), |_, _, _| true);
    is_refused_before_it_starts(&["--init", path, "--model", "reference"], &[path, "has no tensor"]);
}

// ---- Divergence ----

#[test]
fn a_run_that_diverges_says_so_and_keeps_its_last_good_state() {
    let (run, output) =
        train(&["--train-limit", "640", "--learning-rate", "1e20", "--clip-norm", "none", "--workers", "2"]);
    output.is_refused(&["diverged at step", "NaN or infinity", "--learning-rate"]);
    let summary = run.summary();
    assert_eq!(summary["outcome"], "diverged");
    let journal = run.journal();
    let steps = events(&journal, "step");
    assert_eq!(summary["steps"], steps.len());
    assert!(!steps.is_empty(), "the first step still works");
    // The state that the message speaks of is there, whole, and the journal's.
    let last = tally_checkpoint::read(&run.path().join("checkpoints/last")).unwrap();
    assert_eq!(last.meta.step, steps.len() as u64);
    assert_eq!(last.meta.digest.to_string(), steps[steps.len() - 1]["digest"].as_str().unwrap());
    assert!(output.stderr.contains(&format!("step {}", steps.len())), "{}", output.stderr);
}

/// The workers hear of it as well, and end: there is nothing to come back to.
#[test]
fn workers_of_a_run_that_diverged_end() {
    let run = RunDir::new();
    let options = ["--model", "mlp", "--learning-rate", "1e20", "--clip-norm", "none", "--test-limit", "5"];
    let coordinator =
        Coordinator::start([&["--workers", "2", "--run-dir", run.arg()], &options[..]].concat());
    let workers = Worker::start_many(coordinator.grpc_port(), 2);
    coordinator.output().is_refused(&["diverged at step"]);
    for worker in workers {
        assert!(worker.output().stderr.contains("diverged"), "{}", worker.stderr());
    }
}

// ---- Backends ----

/// The binaries of the tests are built without the feature `cuda`.
#[test]
fn cuda_that_is_not_built_in_is_an_error() {
    let words = ["CUDA backend is not in this binary", "--features cuda", "cpu"];
    let run = RunDir::new();
    let options = ["--model", "mlp", "--train-limit", "10", "--test-limit", "5", "--epochs", "1"];
    Coordinator::start([&["--local", "--backend", "cuda", "--run-dir", run.arg()], &options[..]].concat())
        .output()
        .is_refused(&words);

    let run = RunDir::new();
    let coordinator = Coordinator::start([&["--run-dir", run.arg()], &options[..]].concat());
    let port = coordinator.grpc_port();
    Worker::start(port, ["--backend", "cuda"]).output().is_refused(&words);
    assert!(coordinator.is_running(), "one worker's trouble is not the run's");
    Worker::start(port, [""; 0]).succeed();
    coordinator.succeed();

    let checkpoint = run.path().join("checkpoints/last");
    let evaluate = ["evaluate", "--checkpoint", checkpoint.to_str().unwrap(), "--backend", "cuda"];
    run_binary("worker", evaluate).is_refused(&words);
}

// ---- Nothing lost ----

/// The second interrupt stops at once, and costs no more than the step in flight.
#[test]
fn resume_1_an_impatient_interrupt_loses_nothing() {
    let run = RunDir::new();
    let model = "synthetic:parameters=1000,us-per-sample=30000";
    let options = ["--model", model, "--train-limit", "64", "--test-limit", "5", "--epochs", "1"];
    let coordinator =
        Coordinator::start([&["--run-dir", run.arg(), "--batch-size", "8"], &options[..]].concat());
    let worker = Worker::start(coordinator.grpc_port(), [""; 0]);
    run.wait_for_step(1);
    coordinator.signal(Signal::INT);
    coordinator.wait_for_line("interrupt again to stop at once");
    coordinator.signal(Signal::INT);
    let status = coordinator.wait();
    assert!(status.code() == Some(130) || status.success(), "{status}");
    assert!(!coordinator.stderr().contains("panicked"), "{}", coordinator.stderr());
    worker.kill9();
    let again = Coordinator::start(["--local", "--resume", run.arg()]);
    again.succeed();
    assert_eq!(run.summary()["steps"], 8);
    assert_eq!((&run.summary()["samples_lost"], &run.summary()["samples"]), (&0.into(), &64.into()));
}
