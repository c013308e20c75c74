//! `gpu-check`, whole, where there is no GPU.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

use serde_json::Value;

fn gpu_check(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-check")).args(line.split(' ')).output().unwrap()
}

#[test]
fn it_finds_out_everything_of_a_device() {
    let small = "--batches 8,16 --steps 2 --repeats 2 --workers 1,2 --cluster-batch 8";
    for backend in ["cpu-as-gpu", "cpu"] {
        let output = gpu_check(&format!("--backend {backend} {small}"));
        let (table, log) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{table}{log}");
        let found: Value = serde_json::from_str(table.lines().last().unwrap()).unwrap();
        assert!(found["device"].as_str().unwrap().starts_with("CPU"), "{table}");
        let list = |name: &str| found[name].as_array().unwrap().clone();
        assert_eq!(
            (list("golden").len(), list("updates").len(), list("failures").len()),
            (1, 1, 0),
            "{table}"
        );
        let repeated = &list("repetition")[0];
        assert_eq!(repeated["different"], serde_json::json!([[1, 0], [2, 0], [16, 0]]), "{table}");
        assert_eq!(repeated["subtree_is_its_leaves"], true, "{table}");
        let numbers = |list: Vec<Value>, of: &str| -> Vec<u64> {
            list.iter().map(|row| row[of].as_u64().unwrap()).collect()
        };
        assert_eq!(numbers(list("steps"), "batch"), [8, 16], "{table}");
        assert_eq!(numbers(list("clusters"), "workers"), [1, 2], "{table}");
        assert_eq!(numbers(list("clusters"), "lost"), [0, 0], "{table}");
    }
}

/// Each finding is a line of its own, before the last line with all of them.
#[test]
fn what_is_found_is_told_as_it_is() {
    let output = gpu_check("--backend cpu --only update,steps --batches 8,16 --steps 1");
    let lines = String::from_utf8(output.stdout).unwrap();
    let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = found.iter().filter_map(|line| line["found"].as_str()).collect();
    assert_eq!(kinds, ["device", "update", "device", "steps", "steps"], "{lines}");
    assert_eq!(found.last().unwrap()["steps"].as_array().unwrap().len(), 2, "{lines}");
}

/// A part that does not end in time is killed, and the report is there all the same.
#[test]
fn a_part_that_takes_too_long_is_a_failure_of_its_own() {
    let output = gpu_check("--backend cpu --only repetition --batches 8 --repeats 100000000 --deadline 3");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("FAILED f32, repetition: it was not done within 3 s"), "{log}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let found: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(found["failures"].as_array().unwrap().len(), 1, "{lines}");
}

/// The report is there, too, if the time for all parts is over.
#[test]
fn parts_without_time_are_failures() {
    let output =
        gpu_check("--backend cpu --only repetition,update --batches 8 --repeats 100000000 --within 3");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("FAILED f32, update: its time was over before it began"), "{log}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let found: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(found["failures"].as_array().unwrap().len(), 2, "{lines}");
}

/// A process that a profiler has started ends by itself.
#[test]
fn a_process_ends_itself_after_its_deadline() {
    let output =
        gpu_check("--here --backend cpu --only repetition --batches 8 --repeats 100000000 --deadline 1");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{log}");
    assert!(log.contains("this was not done within 2 s"), "{log}");
}

#[test]
fn findings_that_were_kept_are_compared() {
    let kept = tempfile::NamedTempFile::new().unwrap();
    let golden = |variant: &str, bits: &str| {
        serde_json::json!({"found": "golden", "precision": "tf32", "answers": 0.0, "losses": 0.0, "norms": 0.0,
            "tolerance": [1.0, 1.0, 1.0], "variant": variant, "bits": bits})
    };
    let lines = [golden("default", "one"), golden("wide", "another")].map(|line| line.to_string());
    fs::write(kept.path(), format!("{}\nno finding\n{{\"version\": \"1\"}}\n", lines.join("\n"))).unwrap();
    let output = gpu_check(&format!("--compare {}", kept.path().display()));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(
        log.contains("FAILED tf32, golden, wide: its bits are not those of variant \"default\""),
        "{log}"
    );
    let output = gpu_check("--compare /nowhere/findings.jsonl");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.starts_with("error: /nowhere/findings.jsonl: "), "{log}");
}

/// The script for a GPU's machine (`run.sh`) keeps the findings.
#[test]
fn the_script_keeps_what_is_found() {
    let out = tempfile::tempdir().unwrap();
    // NVIDIA's tools, which write lines between the findings.
    let tools = tempfile::tempdir().unwrap();
    let tool = |name: &str, text: &str| {
        let file = tools.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    tool("nvidia-smi", "echo name, driver_version");
    tool(
        "compute-sanitizer",
        "echo ========= COMPUTE-SANITIZER; while [ \"$1\" != \"$GPU_CHECK\" ]; do shift; done; exec \"$@\"",
    );
    let path = [tools.path().display().to_string(), std::env::var("PATH").unwrap()].join(":");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/gpu-check-run.sh");
    let run = |mode: &str, options: &str| {
        let mut command = Command::new("bash");
        command.args([script, mode]).arg(out.path()).arg("--").args(options.split(' '));
        command.env("GPU_CHECK", env!("CARGO_BIN_EXE_gpu-check")).env("TALLY_CACHE_DIR", out.path());
        command.env("PATH", &path).output().unwrap()
    };
    let small = "--backend cpu --precisions f32 --batches 8 --steps 1 --repeats 1";
    let output = run("first", small);
    let log = fs::read_to_string(out.path().join("log.txt")).unwrap();
    assert!(output.status.success(), "{log}");
    let lines = fs::read_to_string(out.path().join("findings.jsonl")).unwrap();
    let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |kind: &str| found.iter().filter(|line| line["found"] == kind).count();
    assert_eq!((count("golden"), count("update"), count("steps"), count("failure")), (3, 5, 1, 0), "{lines}");
    for said in ["steps: done", "nvidia-smi: name, driver_version", "racecheck: ========= COMPUTE-SANITIZER"]
    {
        assert!(log.contains(said), "{log}");
    }

    // It ends at once if there is no device.
    let output = run("first", "--backend cuda --device 4096");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_gpu_that_is_not_there_is_an_exit_code_of_its_own() {
    // No machine has so many devices; one without a driver says that first.
    let output = gpu_check("--backend cuda --device 4096");
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{log}");
    assert!(log.starts_with("error: ") && output.stdout.is_empty(), "{log}");
}
