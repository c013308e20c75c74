//! Journals and `run.json` with anything in them: they are read or refused, and nothing
//! panics. Nobody but the coordinator writes them, but disks and editors change files.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tally_numerics::norm::BLOCK;
use tally_numerics::tree::Tree;
use tally_run::config::RUN_VERSION;
use tally_run::directory;
use tally_run::journal::{self, Journal};
use tally_run::record::Record;

/// A value that may stand where a number or text should.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec![
            json!(null),
            json!(-1),
            json!(0),
            json!(1),
            json!(2),
            json!(u64::MAX),
            json!(1e308),
            json!(0.5),
            json!(""),
            json!("ffffffffffffffff"),
            json!("synthetic:parameters=99999999999"),
            json!([]),
            json!({}),
            json!(true),
            json!(4_294_967_297u64),
        ]),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,20}".prop_map(|text| json!(text)),
    ]
}

fn step(step: u64) -> Value {
    json!({
        "event": "step", "step": step, "epoch": 1 + (step - 1) / 3, "samples": if step.is_multiple_of(3) { 3 } else { 4 },
        "loss": { "total": 6.0, "label": 1.0, "sum": 2.0, "difference": 3.0 }, "workers": 1, "seconds": 0.5,
        "compute_seconds": 0.1, "transfer_seconds": 0.1, "waiting_seconds": 0.0, "attempt": 1,
        "learning_rate": 0.1, "gradient_norm": 1.0, "digest": "0123456789abcdef",
    })
}

/// A run's configuration, as `run.json` has it.
fn config() -> Value {
    let loss = |name| json!({ "name": name, "label": name });
    json!({
        "version": RUN_VERSION, "tally": "0.1.0", "run": "0000000000000001",
        "program": { "name": "program", "variant": "small", "arguments": { "width": 10 } },
        "schema": {
            "losses": [loss("label"), loss("sum"), loss("difference")],
            "metrics": [
                { "name": "right", "label": "right", "kind": "ratio", "higher_is_better": true },
                { "name": "errors", "label": "errors", "kind": "histogram", "first": -1, "bins": 3 },
                { "name": "confusion", "label": "digits", "kind": "confusion", "classes": 2 },
            ],
            "best": "right",
        },
        "seed": 1, "epochs": 19, "batch_size": 4, "microbatches": 8, "recipe": "custom",
        "optimizer": {
            "learning_rate": 0.1, "momentum": 0.9, "clip_norm": 2.0, "warmup_steps": 11, "lr_schedule": "linear",
        },
        "data": {
            "directory": null, "train_limit": null, "test_limit": null, "train_samples": 11, "test_samples": 5,
            "sha256": "0123456789abcdef",
        },
        "init": null, "chunk": BLOCK, "workers": 1, "checkpoint_every": null, "keep_checkpoints": 3,
        "audit_rate": 0.0, "wire_dtype": "f32",
        "tensors": [{ "name": "weight", "shape": [10], "bound": 0.1 }],
    })
}

#[test]
fn the_files_that_are_changed_here_can_be_read() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("run.json"), config().to_string()).unwrap();
    let lines: String = (1..=4).map(|n| format!("{}\n", step(n))).collect();
    std::fs::write(root.path().join("journal.jsonl"), lines).unwrap();
    assert_eq!(Record::read(root.path()).unwrap().last(), 4);
}

/// All places in a value, as JSON pointers.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, v)| places(v, &format!("{at}/{name}"), into)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| places(v, &format!("{at}/{i}"), into))
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_journal_or_are_refused(text in vec(any::<u8>(), 0..300)) {
        let _ = journal::parse(Path::new("journal"), &text);
        let _ = directory::parse_config(Path::new("run"), &text);
    }

    #[test]
    fn a_journal_with_a_changed_line_is_read_or_refused(
        lines in 1u64..7, at in 0usize..7, place in any::<prop::sample::Index>(), new in value(), cut in 0usize..40,
    ) {
        let mut steps: Vec<Value> = (1..=lines).map(step).collect();
        let at = at % steps.len();
        let mut there = Vec::new();
        places(&steps[at], "", &mut there);
        *steps[at].pointer_mut(&there[place.index(there.len())]).unwrap() = new;
        let text: String = steps.iter().map(|line| format!("{line}\n")).collect();
        let mut text = text.into_bytes();
        text.truncate(text.len().saturating_sub(cut));

        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("journal.jsonl");
        std::fs::write(&path, &text).unwrap();
        std::fs::write(root.path().join("run.json"), config().to_string()).unwrap();
        // A record that can be read has the steps in their order, each with its samples.
        if let Ok(record) = Record::read(root.path()) {
            prop_assert!((1..=record.last()).all(|n| record.step(n).is_some_and(|line| line.step == n)));
            prop_assert!(record.step(0).is_none() && record.step(record.last() + 1).is_none());
            prop_assert_eq!(&std::fs::read(&path).unwrap(), &text);
        }
        // Opened to go on, it keeps its whole lines and nothing else.
        if let Ok((journal, history)) = Journal::open(&path) {
            drop(journal);
            let kept = std::fs::read(&path).unwrap();
            prop_assert!(text.starts_with(&kept) && kept.last().is_none_or(|&last| last == b'\n'));
            prop_assert!(history.digests.keys().copied().eq(1..=history.digests.len() as u64));
        }
    }

    #[test]
    fn a_changed_run_json_is_read_or_refused(place in any::<prop::sample::Index>(), new in value()) {
        let mut config = config();
        let mut there = Vec::new();
        places(&config, "", &mut there);
        *config.pointer_mut(&there[place.index(there.len())]).unwrap() = new;
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("journal.jsonl"), format!("{}\n", step(1))).unwrap();
        std::fs::write(root.path().join("run.json"), config.to_string()).unwrap();
        if let Ok(record) = Record::read(root.path()) {
            prop_assert!(record.schedule.steps_per_epoch() > 0);
            // What decides the bits can be worked out from it, or is refused, without a panic.
            let _ = Tree::new(record.config.microbatches);
            let total = record.schedule.steps_per_epoch() as u64 * u64::from(record.config.epochs);
            for step in [1, 2, total.max(1), u64::MAX] {
                let _ = record.config.optimizer.rate(step, total);
            }
        }
    }
}
