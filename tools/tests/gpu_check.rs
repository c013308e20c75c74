//! `gpu-check`, whole, where there is no GPU.

#![allow(clippy::unwrap_used)]

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

#[test]
fn a_gpu_that_is_not_there_is_an_exit_code_of_its_own() {
    // No machine has so many devices; one without a driver says that first.
    let output = gpu_check("--backend cuda --device 4096");
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{log}");
    assert!(log.starts_with("error: ") && output.stdout.is_empty(), "{log}");
}
