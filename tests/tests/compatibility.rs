//! Other versions of Tally: peers that speak the same protocol work together whatever their build, others are
//! refused in words on both sides; files of a newer version are refused, and what only
//! it knows of in the files of this version is skipped (`docs/compatibility.md`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::GrayImage;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tally_proto::v1::{
    CoordinatorMessage, GradientUp, StreamOpen, WorkerMessage, coordinator_message, gradient_up,
    worker_message,
};
use tally_proto::{BF16, PROTOCOL};
use tally_tests::baseline_run::{coordinator, equals_baseline};
use tally_tests::rewriting_proxy::{Rewrite, RewritingProxy};
use tally_tools::cluster::{RunDir, Worker, digests, events, run, train_local};

// ---- Peers ----

/// A worker as the first ones of protocol 1 were: without bfloat16, shared memory and spans of time. What it would not
/// have known of is counted, and reaches nobody.
#[derive(Default)]
struct First(Arc<AtomicUsize>);

impl First {
    fn unknown<M>(&self) -> Option<M> {
        self.0.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Rewrite for First {
    fn worker(&self, mut message: WorkerMessage) -> Option<WorkerMessage> {
        use worker_message::Body;
        match message.body.as_mut()? {
            Body::Hello(hello) => {
                assert!(hello.capabilities.iter().any(|c| c == BF16), "today's worker can do more");
                (hello.build, hello.capabilities) = ("0.0.1".into(), Vec::new());
            }
            Body::ModelManifest(offer) => offer.numerics_class.clear(),
            Body::Committed(committed) => committed.spans.clear(),
            Body::Evaluated(evaluated) => evaluated.spans.clear(),
            Body::Clock(_) => return self.unknown(),
            _ => {}
        }
        Some(message)
    }

    fn coordinator(&self, mut message: CoordinatorMessage) -> Option<CoordinatorMessage> {
        use coordinator_message::Body;
        match message.body.as_mut()? {
            // A reader that does not know a field does not see it.
            Body::Welcome(welcome) => {
                (welcome.up, welcome.down, welcome.spans) = (None, None, false);
                welcome.wire_dtype.clear();
            }
            Body::Plan(plan) => plan.takeover = false,
            Body::Clock(_) => return self.unknown(),
            _ => {}
        }
        Some(message)
    }

    fn up(&self, mut message: GradientUp) -> Option<GradientUp> {
        if let Some(gradient_up::Body::StreamOpen(open)) = &mut message.body {
            *open = StreamOpen::default();
        }
        Some(message)
    }
}

#[test]
fn sum_1_the_first_workers_of_this_protocol_still_take_part_in_the_same_bits() {
    let directory = RunDir::new();
    let coordinator = coordinator(&directory, "2", 500, 5);
    let unknown = Arc::new(AtomicUsize::new(0));
    let between = RewritingProxy::start(coordinator.grpc_port(), First(unknown.clone()));
    let workers = [Worker::start(between.port(), [""; 0]), Worker::start(coordinator.grpc_port(), [""; 0])];
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
    equals_baseline(&directory);
    let journal = directory.journal();
    assert!(events(&journal, "step").iter().any(|step| step["workers"] == 2), "both took part");
    assert_eq!(events(&journal, "lost").iter().filter(|line| line["polite"] == false).count(), 0);
    assert_eq!(unknown.load(Ordering::Relaxed), 0, "it was sent what it did not say that it can");
}

/// A worker that calls itself something else.
struct Other {
    build: &'static str,
    protocol: u32,
}

impl Rewrite for Other {
    fn worker(&self, mut message: WorkerMessage) -> Option<WorkerMessage> {
        if let Some(worker_message::Body::Hello(hello)) = &mut message.body {
            (hello.build, hello.protocol) = (self.build.into(), self.protocol);
            hello.capabilities.push("telepathy".into());
        }
        Some(message)
    }
}

#[test]
fn workers_of_newer_builds_take_part_and_of_other_protocols_are_refused_on_both_sides() {
    let directory = RunDir::new();
    let coordinator = coordinator(&directory, "1", 0, 1);
    let port = coordinator.grpc_port();
    for (build, protocol, remedy) in [
        ("0.0.9", PROTOCOL - 1, "upgrade the worker"),
        ("9.9.9", PROTOCOL + 1, "upgrade the coordinator"),
        ("9.9.10", u32::MAX, "upgrade the coordinator"),
    ] {
        let between = RewritingProxy::start(port, Other { build, protocol });
        let said = [build, &format!("protocol {protocol}"), &format!("protocol {PROTOCOL}"), remedy];
        Worker::start(between.port(), [""; 0]).output().is_refused(&said);
        let told = coordinator.wait_for_line(build);
        assert!(said.iter().all(|words| told.contains(words)), "{told}");
    }
    // The run is none the worse for it.
    let between = RewritingProxy::start(port, Other { build: "0.9.9", protocol: PROTOCOL });
    let worker = Worker::start(between.port(), [""; 0]);
    coordinator.succeed();
    worker.succeed();
    equals_baseline(&directory);
    assert_eq!(directory.summary()["workers_joined"], 1);
}

/// A coordinator that calls itself something else.
struct Replaced(u32);

impl Rewrite for Replaced {
    fn coordinator(&self, mut message: CoordinatorMessage) -> Option<CoordinatorMessage> {
        if let Some(coordinator_message::Body::Welcome(welcome)) = &mut message.body {
            (welcome.build, welcome.protocol) = ("9.9.9".into(), self.0);
        }
        Some(message)
    }
}

/// Coordinators refuse by themselves; one that does not is refused by the worker.
#[test]
fn a_coordinator_of_another_protocol_is_not_worked_for() {
    let directory = RunDir::new();
    let coordinator = coordinator(&directory, "1", 0, 1);
    for (protocol, remedy) in
        [(PROTOCOL + 1, "upgrade the worker"), (PROTOCOL - 1, "upgrade the coordinator")]
    {
        let between = RewritingProxy::start(coordinator.grpc_port(), Replaced(protocol));
        let words = [&between.port().to_string(), "9.9.9", &format!("protocol {protocol}"), remedy];
        Worker::start(between.port(), [""; 0]).output().is_refused(&words);
    }
}

// ---- Files ----

const OPTIONS: [&str; 12] = [
    "--model",
    "mlp",
    "--batch-size",
    "64",
    "--train-limit",
    "128",
    "--test-limit",
    "10",
    "--epochs",
    "2",
    "--checkpoint-every",
    "1",
];

/// All that reads a run, and all that reads a checkpoint.
struct Readers {
    run: RunDir,
    picture: PathBuf,
}

impl Readers {
    fn new() -> Self {
        let run = train_local(1, &OPTIONS);
        let picture = run.path().with_extension("png");
        GrayImage::from_fn(28, 28, |x, _| [if (12..16).contains(&x) { 255 } else { 0 }].into())
            .save(&picture)
            .unwrap();
        Self { run, picture }
    }

    fn checkpoint(&self) -> PathBuf {
        fs::canonicalize(self.run.path().join("checkpoints/last")).unwrap()
    }

    fn run_readers(&self) -> [Vec<&str>; 3] {
        [
            vec![
                "--local",
                "--resume",
                self.run.arg(),
                "--listen",
                "127.0.0.1:0",
                "--http-listen",
                "127.0.0.1:0",
            ],
            vec!["verify", self.run.arg(), "--backend", "cpu"],
            vec!["report", self.run.arg(), "--out", "report.html"],
        ]
    }

    fn refused_as_a_run(&self, words: &[&str]) {
        let before = digests(&self.run.journal());
        for command in self.run_readers() {
            let output = run("coordinator", &command);
            assert!(!output.status.success(), "{command:?} was done: {}", output.stdout);
            output.is_refused(&[words, &[self.run.arg()]].concat());
        }
        assert_eq!(digests(&self.run.journal()), before);
    }

    fn checkpoint_readers(&self, checkpoint: &str) -> [(&str, Vec<String>); 4] {
        let picture = self.picture.to_str().unwrap();
        let new = self.run.path().with_extension("new");
        let owned = |args: &[&str]| args.iter().map(ToString::to_string).collect();
        let init = ["--local", "--init", checkpoint, "--run-dir", new.to_str().unwrap()];
        let ports = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        [
            ("worker", owned(&["evaluate", "--checkpoint", checkpoint])),
            ("worker", owned(&["predict", "--checkpoint", checkpoint, "--number", "3", "--image", picture])),
            ("coordinator", owned(&["samples", "--checkpoint", checkpoint, "--out", "samples.png"])),
            ("coordinator", owned(&[&init[..], &ports, &OPTIONS].concat())),
        ]
    }
}

/// Changes a file of JSON.
fn alter(path: &Path, change: impl Fn(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Changes a checkpoint's manifest, and seals it again as `checkpoint/src/meta.rs` says.
fn reseal(checkpoint: &Path, change: impl Fn(&mut Value)) {
    let path = checkpoint.join("manifest.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("manifest_sha256");
    change(&mut value);
    let sealed = format!("\",{}\n", value.to_string().strip_prefix('{').unwrap());
    let seal: String = Sha256::digest(&sealed).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(path, format!("{{\n  \"manifest_sha256\": \"{seal}{sealed}")).unwrap();
}

fn append(run: &RunDir, line: &Value) {
    let path = run.path().join("journal.jsonl");
    fs::write(&path, fs::read_to_string(&path).unwrap() + &format!("{line}\n")).unwrap();
}

#[test]
fn a_run_directory_of_a_newer_layout_is_refused() {
    let readers = Readers::new();
    alter(&readers.run.path().join("run.json"), |config| {
        config["version"] = 2.into();
        config["tally"] = "9.9.9".into();
        // It need not look the same in any other way.
        config["tensors"] = json!({ "elsewhere": true });
    });
    readers.refused_as_a_run(&["Tally 9.9.9", "layout 2", "upgrade this Tally"]);
}

#[test]
fn a_journal_of_a_newer_version_is_refused() {
    let readers = Readers::new();
    append(&readers.run, &json!({ "event": "start", "version": 2, "tally": "9.9.9", "incarnation": [2] }));
    readers.refused_as_a_run(&["journal.jsonl", "Tally 9.9.9", "journal version 2", "upgrade this Tally"]);
}

#[test]
fn ckpt_1_a_checkpoint_of_a_newer_format_is_refused() {
    let readers = Readers::new();
    let checkpoint = readers.checkpoint();
    reseal(&checkpoint, |manifest| {
        manifest["version"] = 2.into();
        manifest["tensors"] = json!("elsewhere");
    });
    let words = [checkpoint.to_str().unwrap(), "format 2", "reads format 1", "upgrade this Tally"];
    for (binary, args) in readers.checkpoint_readers(checkpoint.to_str().unwrap()) {
        run(binary, &args).is_refused(&words);
    }
    // A newer Tally has gone on with this run: not from an older checkpoint, over its head.
    let before = readers.run.checkpoints();
    assert!(before.len() > 1);
    let [resume, ..] = readers.run_readers();
    run("coordinator", &resume).is_refused(&words);
    assert_eq!(readers.run.checkpoints(), before);
}

#[test]
fn resume_1_what_only_a_newer_tally_knows_of_is_skipped() {
    let readers = Readers::new();
    let whole = readers.run.summary();
    for file in ["run.json", "summary.json"] {
        alter(&readers.run.path().join(file), |value| value["weather"] = json!({ "sky": ["clear"] }));
    }
    reseal(&readers.checkpoint(), |manifest| manifest["weather"] = json!([null, 1.5]));
    append(&readers.run, &json!({ "event": "eclipse", "step": "dark", "of": { "the": "sun" } }));
    append(&readers.run, &json!({ "event": "checkpoint", "step": 4, "path": "…", "weather": "wet" }));
    for (binary, args) in readers.checkpoint_readers(readers.checkpoint().to_str().unwrap()) {
        let output = run(binary, &args);
        assert!(output.status.success(), "{args:?}: {}", output.stderr);
    }
    for command in readers.run_readers() {
        let output = run("coordinator", &command);
        assert!(output.status.success(), "{command:?}: {}", output.stderr);
    }
    let after = readers.run.summary();
    assert_eq!(
        (&after["parameters_sha256"], &after["steps"]),
        (&whole["parameters_sha256"], &whole["steps"])
    );
    assert_eq!(digests(&readers.run.journal()).len() as u64, whole["steps"].as_u64().unwrap());
}
