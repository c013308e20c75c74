//! `coordinator verify`: a run's steps are computed again and compared with its journal
//! (**RESUME-1**, **SUM-1**), and nothing in its directory is touched.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use tally_tools::cluster::{Coordinator, Output, RunDir, Signal, run as run_binary, train_local};

/// Four epochs of eight steps, the last one of each short.
const OPTIONS: [&str; 12] = [
    "--model",
    "mlp",
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

fn verify(run: &RunDir, options: &[&str]) -> Output {
    let device = ["verify", run.arg(), "--backend", "cpu", "--threads", "1"];
    run_binary("coordinator", [&device[..], options].concat())
}

/// The result as JSON, of a run that is all right.
fn proved(run: &RunDir, options: &[&str]) -> Value {
    let output = verify(run, &[options, &["--json"]].concat());
    assert!(output.status.success(), "{}", output.stderr);
    let value: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(value["equal"], value["computed"], "{value}");
    assert_eq!(value["first_difference"], Value::Null);
    value
}

/// Everything in a directory, with its contents and times.
fn everything(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let contents = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.insert(path.clone(), (contents, meta.modified().unwrap()));
        if meta.is_dir() {
            found.append(&mut everything(&path));
        }
    }
    found
}

/// Changes a part of a step's line in the journal.
fn alter(run: &RunDir, step: u64, change: impl Fn(&mut Value)) {
    let path = run.path().join("journal.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|text| {
        let mut line: Value = serde_json::from_str(text).unwrap();
        if line["event"] != "step" || line["step"] != step {
            return format!("{text}\n");
        }
        change(&mut line);
        format!("{line}\n")
    });
    fs::write(&path, lines.collect::<String>()).unwrap();
}

#[test]
fn resume_1_a_run_of_three_workers_is_proved_on_one_machine() {
    let run = train_local(3, &OPTIONS);
    let before = everything(run.path());
    let whole = verify(&run, &[]);
    assert!(whole.status.success(), "{}", whole.stderr);
    assert!(
        whole.stdout.starts_with("steps 1 to 32: 32 of 32 have the journal's digests"),
        "{}",
        whole.stdout
    );
    assert!(whole.stderr.contains("from the initial state"), "{}", whole.stderr);

    // The newest three checkpoints are kept: 27, 30 and the last.
    let value = proved(&run, &["--steps", "31..32"]);
    assert_eq!((&value["started_at"], &value["computed"]), (&30.into(), &2.into()), "{value}");
    // Both the last checkpoint and the summary hold the state computed.
    assert_eq!(value["states_equal"], 2);
    let value = proved(&run, &["--steps", "29"]);
    assert_eq!((&value["started_at"], &value["first"], &value["last"]), (&27.into(), &29.into(), &29.into()));
    let line = verify(&run, &["--steps", "30"]).stdout;
    assert_eq!(line, "step 30: 1 of 1 have the journal's digests, and so has 1 state on disk\n");

    assert_eq!(everything(run.path()), before, "verifying left something behind");
}

#[test]
fn an_altered_line_is_found_at_exactly_its_step() {
    let run = train_local(2, &OPTIONS);
    alter(&run, 7, |line| line["digest"] = "0123456789abcdef".into());
    let output = verify(&run, &[]);
    output.is_refused(&[
        "step 7 differs",
        "digest",
        "0123456789abcdef",
        "the steps after it agree",
        "backup",
    ]);
    assert!(output.stdout.starts_with("steps 1 to 32: 31 of 32 have"), "{}", output.stdout);
    // Steps before and after it are proved; the ones after say that something lies on the way.
    proved(&run, &["--steps", "..6"]);
    let after = proved(&run, &["--steps", "8..9"]);
    assert!(after["warnings"][0].as_str().unwrap().contains("step 7"), "{after}");
    let alone = verify(&run, &["--steps", "7", "--json"]);
    alone.is_refused(&["step 7 differs"]);
    let value: Value = serde_json::from_str(&alone.stdout).unwrap();
    assert_eq!((&value["first_difference"]["step"], &value["equal"]), (&7.into(), &0.into()));

    // Losses are compared as well, to the last bit.
    alter(&run, 3, |line| {
        let loss = line["loss"]["sum"].as_f64().unwrap();
        line["loss"]["sum"] = f64::from_bits(loss.to_bits() + 1).into();
    });
    verify(&run, &["--steps", "1..6"]).is_refused(&["step 3 differs", "loss of sum", "changed or damaged"]);
}

#[test]
fn a_run_that_was_not_computed_so_is_given_up_soon() {
    let run = train_local(1, &OPTIONS);
    let path = run.path().join("run.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["optimizer"]["momentum"] = 0.8999.into();
    fs::write(&path, config.to_string()).unwrap();
    let output = verify(&run, &[]);
    // The first step has no momentum yet, so it is the second that differs.
    output.is_refused(&["step 2 differs", "the steps after it differ as well", "kind of processor"]);
    assert!(output.stdout.starts_with("steps 1 to 32: 1 of the 4 computed have"), "{}", output.stdout);
}

#[test]
fn ckpt_1_a_damaged_checkpoint_is_passed_over() {
    let run = train_local(1, &OPTIONS);
    let damage = |name: &str| {
        let file = run.path().join("checkpoints").join(name).join("optimizer.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(file, bytes).unwrap();
    };
    damage("step-00000030");
    let value = proved(&run, &["--steps", "31..32"]);
    assert_eq!(value["started_at"], 27);
    let warnings = value["warnings"].as_array().unwrap();
    // It is told of twice: when it can't be started from, and when it is come past.
    assert!(warnings.iter().all(|w| w.as_str().unwrap().contains("step-00000030")), "{value}");
    for other in run.checkpoints() {
        let name = other.file_name().unwrap().to_str().unwrap();
        if name != "step-00000030" {
            damage(name);
        }
    }
    let value = proved(&run, &["--steps", "30..31"]);
    assert_eq!(value["started_at"], 0);
    // A whole checkpoint of other parameters than the journal's is no start either.
    alter(&run, 32, |line| line["digest"] = "00000000000000aa".into());
    verify(&run, &["--steps", "32"]).is_refused(&["step 32 differs"]);
}

#[test]
fn a_run_can_be_verified_while_it_goes_on() {
    let run = RunDir::new();
    let model = "synthetic:parameters=50000,us-per-sample=800";
    let cluster = ["--local", "--workers", "2", "--run-dir", run.arg(), "--model", model];
    let coordinator = Coordinator::start([&cluster[..], &OPTIONS[2..]].concat());
    run.wait_for_step(5);
    proved(&run, &["--steps", "1..5"]);
    assert!(coordinator.is_running());
    coordinator.signal(Signal::KILL);
    coordinator.wait();
    // A line that was being written is no step yet, and stays.
    let journal = run.path().join("journal.jsonl");
    let mut file = fs::OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(b"{\"event\":\"step\",\"step\":").unwrap();
    let before = fs::read(&journal).unwrap();
    proved(&run, &[]);
    assert_eq!(fs::read(&journal).unwrap(), before);
}

#[test]
fn the_reference_network_and_given_weights_are_verified_too() {
    let short = ["--train-limit", "30", "--batch-size", "16", "--epochs", "1", "--test-limit", "4"];
    let run = train_local(2, &short);
    let value = proved(&run, &[]);
    assert_eq!((&value["computed"], &value["states_equal"]), (&2.into(), &2.into()));

    let first = train_local(1, &OPTIONS);
    let weights = first.path().join("weights.safetensors");
    fs::copy(first.path().join("checkpoints/last/model.safetensors"), &weights).unwrap();
    let given = ["--init", weights.to_str().unwrap()];
    let run = train_local(1, &[&OPTIONS[..8], &["--epochs", "1"], &given].concat());
    proved(&run, &["--steps", "..3"]);
    fs::remove_file(&weights).unwrap();
    verify(&run, &["--steps", "..3"])
        .is_refused(&["weights that the run started from", "weights.safetensors"]);
}

#[test]
fn what_cannot_be_verified_is_named() {
    let nowhere = RunDir::new();
    verify(&nowhere, &[]).is_refused(&["is no run directory", "--run-dir"]);
    fs::create_dir_all(nowhere.path()).unwrap();
    verify(&nowhere, &[]).is_refused(&["is no run directory"]);

    let run = train_local(1, &[&OPTIONS[..8], &["--epochs", "1"]].concat());
    verify(&run, &["--steps", "9"]).is_refused(&["--steps 9..9", "steps 1 to 8"]);
    verify(&run, &["--data-dir", nowhere.arg()]).is_refused(&[nowhere.arg()]);
    let output = verify(&run, &["--steps", "5..3"]);
    assert!(output.status.code() == Some(2) && output.stderr.contains("7..9"), "{}", output.stderr);

    alter(&run, 8, |line| line["samples"] = 64.into());
    verify(&run, &[]).is_refused(&["step 8", "64 samples", "52 samples"]);
    alter(&run, 8, |line| line["step"] = 9.into());
    verify(&run, &[]).is_refused(&["step 9 stands where step 8 should"]);
    fs::remove_file(run.path().join("journal.jsonl")).unwrap();
    verify(&run, &[]).is_refused(&["cannot read", "journal.jsonl"]);
}
