//! `coordinator plan`, as a user calls it. Whether it is right, `scaling` measures; see `docs/scaling.md`.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use tally_tools::cluster::{RunDir, run, train_local};

fn plan(options: &[&str]) -> Value {
    let output = run("coordinator", [&["plan", "--json"], options].concat());
    assert!(output.status.success(), "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn a_plan_says_when_the_link_is_the_limit_and_what_helps() {
    let slow = ["--sample-time", "5ms", "--batch-size", "64", "--bandwidth", "1G", "--cores", "8"];
    let slow = [&slow[..], &["--workers", "1,8"]].concat();
    let plan = plan(&slow);
    assert_eq!(plan["parameters"], 6_402_764);
    let [one, eight] = [0, 1].map(|at| &plan["predictions"][at]);
    assert_eq!((&one["limit"], &eight["limit"]), (&"computing".into(), &"coordinator-link".into()));
    // Eight gradients of 25.6 MB and eight sums through a link of 125 MB/s, and 40 ms of computing.
    let seconds = eight["step_seconds"].as_f64().unwrap();
    assert!((1.7..4.0).contains(&seconds), "{eight}");
    let parts = eight["parts"].as_object().unwrap().values().map(|part| part.as_f64().unwrap());
    assert!((parts.sum::<f64>() - seconds).abs() < 1e-9, "{eight}");
    let changes = eight["changes"].as_array().unwrap();
    let bf16 = changes.iter().find(|change| change["what"].as_str().unwrap().contains("bf16")).unwrap();
    assert!(bf16["times"].as_f64().unwrap() > 1.5, "{bf16}");

    let output = run("coordinator", [&["plan"], &slow[..]].concat());
    assert!(output.status.success(), "{}", output.stderr);
    assert!(
        output.stdout.contains("From 8 workers on, the limit is the coordinator's link."),
        "{}",
        output.stdout
    );
}

#[test]
fn a_plan_starts_from_a_run() {
    let model = "synthetic:parameters=5000,us-per-sample=2000";
    let options = ["--model", model, "--train-limit", "320", "--test-limit", "2", "--epochs", "1"];
    let record = train_local(2, &[&options[..], &["--microbatches", "4", "--batch-size", "32"]].concat());
    let plan = plan(&["--run", record.arg(), "--workers", "2"]);
    assert_eq!(
        (&plan["batch_size"], &plan["microbatches"], &plan["parameters"]),
        (&32.into(), &4.into(), &5000.into())
    );
    assert_eq!(plan["run"]["workers"], 2);
    // It slept two milliseconds a sample, and no less.
    assert!(plan["sample_seconds"].as_f64().unwrap() >= 2e-3, "{plan}");
    assert!(plan["predictions"][0]["step_seconds"].as_f64().unwrap() >= 32e-3, "{plan}");
}

#[test]
fn what_can_not_be_planned_is_refused() {
    let plan = |options: &[&str]| run("coordinator", [&["plan"], options].concat());
    plan(&["--sample-time", "5ms", "--microbatches", "7"]).is_refused(&["--microbatches", "power of two"]);
    plan(&["--sample-time", "5ms", "--batch-size", "0"]).is_refused(&["--batch-size"]);
    let nowhere = RunDir::new();
    plan(&["--run", nowhere.arg()]).is_refused(&[nowhere.arg()]);
    plan(&["--sample-time", "5ms", "--costs", nowhere.arg()]).is_refused(&[nowhere.arg()]);
    for wrong in [&["--sample-time", "5"][..], &[], &["--sample-time", "1ms", "--workers", "0"]] {
        let output = plan(wrong);
        assert!(!output.status.success() && output.stderr.contains("error:"), "{}", output.stderr);
    }
}
