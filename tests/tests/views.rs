//! What people and tools see of a run: schedule, status, metrics, test lines, files, logs.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tally_mnist::{Mnist, MnistWithNumbers};
use tally_tests::baseline_run::stop;
use tally_tools::cluster::{Coordinator, DEADLINE, RunDir, Signal, Worker, events, run as run_binary};

/// DATA-1, DATA-2: an epoch has every sample once, each with the number that is drawn for it.
#[test]
fn data_1_the_schedule_of_an_epoch_has_every_sample_once() {
    let options = ["--seed", "7", "--train-limit", "1000", "--batch-size", "64"];
    let lines = |epoch| {
        let output = run_binary("coordinator", [&["schedule", "--epoch", epoch], &options[..]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", output.stderr);
        output.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let second = lines("2");
    let train = MnistWithNumbers::train(Mnist::embedded().unwrap().limit(Some(1000), None).unwrap().train, 7);
    let mut seen = BTreeSet::new();
    for (index, line) in second.iter().enumerate() {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(
            BTreeSet::from_iter(keys),
            ["epoch", "numbers", "samples", "step"].map(String::from).iter().collect()
        );
        // The first epoch has the steps from 1 to 16.
        assert_eq!((&line["epoch"], &line["step"]), (&2.into(), &(17 + index).into()));
        let list = |key: &str| -> Vec<u64> {
            line[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect()
        };
        let (samples, numbers) = (list("samples"), list("numbers"));
        assert_eq!(samples.len(), if index == 15 { 1000 - 15 * 64 } else { 64 });
        assert!(
            numbers.iter().copied().eq(samples.iter().map(|&id| u64::from(train.numbers()[id as usize])))
        );
        for id in samples {
            assert!(seen.insert(id), "sample {id} comes twice");
        }
    }
    assert!(seen.into_iter().eq(0..1000));
    assert_ne!(lines("1")[0]["samples"], second[0]["samples"], "each epoch has an order of its own");
    assert_eq!(lines("2"), second);
}

/// A coordinator with two workers in the middle of training, slow enough to be looked at.
fn training(run: &RunDir) -> (Coordinator, Vec<Worker>) {
    let model = "synthetic:parameters=50000,us-per-sample=1000";
    let data = ["--batch-size", "64", "--train-limit", "128", "--test-limit", "10", "--epochs", "500"];
    let coordinator = Coordinator::start(
        [&["--workers", "2", "--run-dir", run.arg(), "--model", model], &data[..]].concat(),
    );
    let workers = Worker::start_many(coordinator.grpc_port(), 2);
    run.wait_for("test pass", |line| line["event"] == "test");
    (coordinator, workers)
}

#[test]
fn status_tells_what_a_cluster_is_doing() {
    let run = RunDir::new();
    let (coordinator, _workers) = training(&run);
    let address = format!("127.0.0.1:{}", coordinator.grpc_port());
    let output = run_binary("coordinator", ["status", "--connect", &address]);
    assert!(output.status.success(), "{}", output.stderr);
    for words in [
        run.arg(),
        "synthetic:",
        "epoch ",
        "/500",
        "/1000",
        "samples/s",
        "loss ",
        "last test: loss ",
        "digit_accuracy ",
        "worker-1",
        "worker-2",
        "synthetic (1ms a sample)",
    ] {
        assert!(output.stdout.contains(words), "no {words:?} in\n{}", output.stdout);
    }
    stop(&coordinator);
    let output = run_binary("coordinator", ["status", "--connect", &address]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(output.stderr.starts_with("error: no coordinator answers at"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
}

/// What a GET of this path answers.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

/// Prometheus' text: every line a comment or a name with labels and a value.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(name.starts_with("tally_") || name.starts_with("process_"), "{line}");
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
        })
        .collect()
}

#[test]
fn metrics_tell_of_steps_workers_seconds_and_bytes() {
    let run = RunDir::new();
    let (coordinator, workers) = training(&run);
    let port = coordinator.http_port();
    assert_eq!(get(port, "/healthz"), "ok\n");
    let found = metrics(&get(port, "/metrics"));
    assert_eq!(found["tally_workers{state=\"ready\"}"], 2.0);
    assert_eq!(found["tally_worker_up{worker=\"worker-1\"}"], 1.0);
    run.wait_for("checkpoint", |line| line["event"] == "checkpoint");
    // The values belong together only while nothing happens: without workers.
    for worker in &workers {
        worker.signal(Signal::INT);
        assert_eq!(worker.wait().code(), Some(75), "the run goes on without it");
    }
    run.wait_for("loss", |line| line["event"] == "lost" && line["worker"] == "worker-1");
    run.wait_for("loss", |line| line["event"] == "lost" && line["worker"] == "worker-2");
    let found = metrics(&get(port, "/metrics"));
    let value = |name: &str| *found.get(name).unwrap_or_else(|| panic!("no {name} in {found:#?}"));

    let steps = value("tally_steps_total");
    assert!((2.0..1000.0).contains(&steps));
    assert_eq!(value("tally_step"), steps);
    assert_eq!(value("tally_steps"), 1000.0);
    assert_eq!(value("tally_epoch"), (steps / 2.0).ceil());
    assert_eq!(value("tally_samples_total"), 64.0 * steps);
    assert_eq!(value("tally_samples_lost_total") + value("tally_samples_duplicated_total"), 0.0);
    let parts = ["label", "sum", "difference"].map(|p| value(&format!("tally_loss{{part=\"{p}\"}}")));
    assert!((value("tally_loss{part=\"total\"}") - parts.iter().sum::<f64>()).abs() < 1e-9);
    assert!(value("tally_learning_rate") > 0.0 && value("tally_learning_rate") <= 0.1);
    for metric in ["digit_accuracy", "sum_accuracy", "difference_accuracy", "all_correct"] {
        assert!((0.0..=1.0).contains(&value(&format!("tally_test_metric_ratio{{metric=\"{metric}\"}}"))));
    }
    assert_eq!(value("tally_workers_joined_total"), 2.0);
    assert_eq!(value("tally_workers_lost_total{polite=\"true\"}"), 2.0);
    assert_eq!(value("tally_workers_lost_total{polite=\"false\"}"), 0.0);
    assert_eq!(value("tally_workers_wanted"), 2.0);
    for part in ["step", "step_compute", "step_transfer", "step_waiting"] {
        assert_eq!(value(&format!("tally_{part}_seconds_count")), steps);
        assert!(value(&format!("tally_{part}_seconds_sum")) >= 0.0);
    }
    // A gradient of 50 000 floats from each of two workers and the sum to each, from and to
    // one since the other left; and what had come of the step in flight.
    let model = 4.0 * 50_000.0;
    for direction in ["received", "sent"] {
        let bytes = value(&format!("tally_gradient_{direction}_bytes_total")) / model;
        assert!(
            (steps..2.0 * steps + 4.0).contains(&bytes),
            "{direction}: {bytes} gradients in {steps} steps"
        );
    }
    let version = format!("tally_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&version), 1.0);
    assert_eq!(value("tally_incarnation"), 1.0);

    let mut tested = 0.0;
    for worker in ["worker-1", "worker-2"] {
        let of = |name: &str| value(&format!("tally_worker_{name}{{worker=\"{worker}\"}}"));
        assert_eq!(of("up"), 0.0, "it has left");
        assert!(of("samples_total") > 0.0 && of("samples_total") <= 64.0 * steps);
        assert!((1.0..=steps).contains(&of("step")));
        let seconds = |activity: &str| {
            value(&format!(
                "tally_worker_activity_seconds_total{{worker=\"{worker}\",activity=\"{activity}\"}}"
            ))
        };
        assert!(seconds("compute") > 0.0 && seconds("wait") > 0.0);
        // The test pass is one leaf, of which either may be given the first or the next.
        tested += seconds("test");
        // All are on one machine, whose clock both read.
        assert!(of("clock_offset_seconds").abs() <= of("clock_error_seconds") + 0.01);
        assert!(of("clock_error_seconds") > 0.0 && of("round_trip_seconds") > 0.0);
    }
    assert!(tested > 0.0);
    assert_eq!(value("tally_worker_series_left_out"), 0.0);
    assert!(value("process_resident_memory_bytes") > 0.0 && value("process_cpu_seconds_total") >= 0.0);
    assert!(value("tally_run_dir_free_bytes") > 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 3600.0..=now + 1.0).contains(&value("tally_checkpoint_time_seconds")));
    stop(&coordinator);
}

/// What lines say of test passes, from the loss to the last metric.
fn test_lines(text: &str) -> Vec<&str> {
    let tests = text.lines().filter(|line| line.contains("all three "));
    tests.filter_map(|line| line.split("  ").find(|part| part.starts_with("loss "))).collect()
}

/// A checkpoint gives the answers that the run printed, computed anew by another binary.
#[test]
fn ckpt_1_evaluate_prints_the_test_line_of_the_run() {
    let run = RunDir::new();
    let options = ["--model", "mlp", "--epochs", "3", "--train-limit", "1000", "--test-limit", "250"];
    let cluster = ["--local", "--backend", "cpu", "--workers", "2", "--run-dir", run.arg()];
    let coordinator = Coordinator::start([&cluster[..], &options].concat());
    coordinator.succeed();
    let stderr = coordinator.stderr();
    let printed = test_lines(&stderr);
    assert_eq!(printed.len(), 3, "{stderr}");
    for label in ["loss ", "digit ", "sum ", "difference ", "all three "] {
        assert!(printed[0].contains(label), "no {label:?} in {}", printed[0]);
    }

    let journal = run.journal();
    let tests = events(&journal, "test");
    let all = |test: &Value| test["metrics"]["all_correct"].as_f64().unwrap();
    assert!(tests.iter().all(|test| test["samples"] == 250), "{tests:?}");
    let best = tests.iter().map(|t| all(t)).fold(0.0, f64::max);
    let best = tests.iter().position(|t| all(t) == best).unwrap();
    for (link, epoch) in [("best", best), ("last", 2)] {
        let checkpoint = run.path().join("checkpoints").join(link);
        let path = checkpoint.to_str().unwrap();
        let output = run_binary("worker", ["evaluate", "--checkpoint", path, "--backend", "cpu"]);
        assert!(output.status.success(), "{}", output.stderr);
        assert_eq!(test_lines(&output.stdout), [printed[epoch]], "{link}");
        assert!(output.stdout.starts_with(&format!("step {}  ", tests[epoch]["step"])), "{}", output.stdout);
    }
}

/// The `Net` of the PyTorch program from which the task comes loads the file with `strict=True`: its names and
/// shapes, no more.
#[test]
fn a_checkpoint_has_exactly_the_names_and_shapes_of_pytorch() {
    let run = RunDir::new();
    let options = ["--batch-size", "1", "--microbatches", "1", "--epochs", "1", "--train-limit", "1"];
    let cluster = ["--local", "--backend", "cpu", "--run-dir", run.arg(), "--test-limit", "1"];
    Coordinator::start([&cluster[..], &options].concat()).succeed();

    let convolutions = [(1, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 10)];
    let linears = [
        ("dense1", 1, 16),
        ("dense2", 16, 32),
        ("sum1", 42, 64),
        ("sum2", 64, 128),
        ("sum3", 128, 1),
        ("diff1", 42, 64),
        ("diff2", 64, 128),
        ("diff3", 128, 1),
    ];
    let mut wanted = BTreeMap::new();
    for (number, (from, to)) in (1..).zip(convolutions) {
        wanted.insert(format!("conv{number}.weight"), vec![to, from, 3, 3]);
        wanted.insert(format!("conv{number}.bias"), vec![to]);
    }
    for (name, from, to) in linears {
        wanted.insert(format!("{name}.weight"), vec![to, from]);
        wanted.insert(format!("{name}.bias"), vec![to]);
    }
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = fs::read(run.path().join("checkpoints/last").join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(tensors.tensors().iter().all(|(_, tensor)| tensor.dtype() == Dtype::F32));
        let found: BTreeMap<String, Vec<usize>> =
            tensors.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect();
        assert_eq!(found, wanted, "{file}");
    }
}

#[test]
fn json_logs_are_an_object_a_line() {
    let run = RunDir::new();
    let options = ["--model", "mlp", "--epochs", "1", "--train-limit", "64", "--test-limit", "10"];
    let logs = ["--log-format", "json", "--log-level", "info"];
    let cluster = ["--workers", "1", "--run-dir", run.arg()];
    let coordinator = Coordinator::start([&cluster[..], &options, &logs].concat());
    let worker = Worker::start(coordinator.grpc_port(), [&["--log-level", "debug"], &logs[..2]].concat());
    coordinator.succeed();
    worker.succeed();
    let mut messages = Vec::new();
    for stderr in [coordinator.stderr(), worker.stderr()] {
        // What is for people stands between: it never begins with a brace.
        for line in stderr.lines().filter(|line| line.starts_with('{')) {
            let log: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            for key in ["timestamp", "level", "target", "fields"] {
                assert!(!log[key].is_null(), "no {key} in {line}");
            }
            messages.push(log);
        }
    }
    let of =
        |start: &str| messages.iter().filter(|m| m["target"].as_str().unwrap().starts_with(start)).count();
    assert!(of("tally_coordinator") > 0 && of("tally_worker") > 0, "{messages:?}");
}

/// Without a terminal there are plain lines, no control characters, and the closing summary.
#[test]
fn plain_output_has_no_control_characters() {
    let run = RunDir::new();
    let options = ["--model", "mlp", "--epochs", "2", "--train-limit", "32", "--test-limit", "10"];
    let cluster = ["--local", "--run-dir", run.arg(), "--log-level", "debug"];
    let coordinator = Coordinator::start([&cluster[..], &options].concat());
    coordinator.succeed();
    for text in [coordinator.stdout(), coordinator.stderr()] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
    assert!(coordinator.stderr().contains("epoch 2/2  step 2/2  loss "), "{}", coordinator.stderr());
    for words in ["4 steps in ", "samples/s", &run.sha256(), "checkpoints/last", "checkpoints/best"] {
        assert!(coordinator.stdout().contains(words), "no {words:?} in {}", coordinator.stdout());
    }
}
