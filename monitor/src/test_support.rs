//! A program with two losses and a metric of each kind, for tests.

use std::sync::LazyLock;

use serde_json::json;
use tally_coordinator::observer::{Context, Idle, Observer, RunEvent};
use tally_core::events::Committed;
use tally_core::recovery::Recorded;
use tally_core::reduce_mode::ReduceMode;
use tally_core::{Core, RunSpec};
use tally_numerics::CHUNK;
use tally_numerics::digest::Digest;
use tally_numerics::order::Schedule;
use tally_numerics::schema::{Evaluation, LossSpec, MetricKind, MetricSpec, Schema, Sums};
use tally_numerics::tree::Tree;
use tally_proto::span::Clock;
use tally_run::config::{RUN_VERSION, RunConfig};
use tally_run::journal::StepLine;

/// The losses `a` and `b`; the metrics `right`, `errors` and `confusion`; `right` picks the best checkpoint.
#[allow(clippy::unwrap_used)]
pub(crate) fn schema() -> Schema {
    let loss = |name: &str| LossSpec { name: name.into(), label: format!("loss {name}") };
    let metric = |name: &str, label: &str, kind| MetricSpec { name: name.into(), label: label.into(), kind };
    let losses = vec![loss("a"), loss("b")];
    let metrics = vec![
        metric("right", "all right", MetricKind::Ratio { higher_is_better: true }),
        metric("errors", "errors of <x>", MetricKind::Histogram { first: -1, bins: 3 }),
        metric("confusion", "kinds", MetricKind::Confusion { classes: 2 }),
    ];
    Schema::new(losses, metrics, Some("right".into())).unwrap()
}

/// A step whose losses are a quarter and three quarters of `total`, with 64 samples in half a second.
pub(crate) fn step_line(step: u64, total: f64) -> StepLine {
    StepLine {
        step,
        epoch: 1,
        loss: schema().named_losses(&Sums(vec![0.25 * total, 0.75 * total])),
        samples: 64,
        workers: 2,
        seconds: 0.5,
        compute_seconds: 0.25,
        transfer_seconds: 0.125,
        waiting_seconds: 0.0,
        attempt: 1,
        owners: 0,
        learning_rate: 0.25,
        gradient_norm: 7.0,
        digest: Digest(step),
    }
}

/// A test pass over 8 samples with `right` of them right.
pub(crate) fn evaluation(right: f64) -> Evaluation {
    let sums = vec![4.0, 8.0, right, 8.0, 1.0, 5.0, 2.0, 3.0, 1.0, 0.0, 4.0];
    schema().evaluation(8, [Some(Sums(sums))])
}

/// A run of two epochs, each of two steps of 64 samples.
#[allow(clippy::unwrap_used)]
pub(crate) fn config() -> RunConfig {
    serde_json::from_value(json!({
        "version": RUN_VERSION, "tally": "0.1.0", "run": "00000000000000ab",
        "program": { "name": "a-program", "variant": "small", "arguments": { "width": 3 } },
        "schema": schema(), "seed": 1, "epochs": 2, "batch_size": 64, "microbatches": 4, "recipe": "default",
        "optimizer": {
            "learning_rate": 0.25, "momentum": 0.5, "clip_norm": null, "warmup_steps": 0, "lr_schedule": "constant",
        },
        "data": {
            "directory": null, "train_limit": null, "test_limit": null, "train_samples": 128, "test_samples": 8,
            "sha256": "",
        },
        "init": null, "chunk": CHUNK, "workers": 2, "checkpoint_every": null, "keep_checkpoints": 3,
        "tensors": [{ "name": "weight", "shape": [2, 3], "bound": 1.0 }],
    }))
    .unwrap()
}

/// A core of that run, without workers.
#[allow(clippy::unwrap_used)]
pub(crate) fn core() -> Core {
    let config = config();
    let spec = RunSpec {
        tree: Tree::new(config.microbatches).unwrap(),
        chunks: 1,
        schedule: Schedule::new(config.seed, config.data.train_samples, config.batch_size).unwrap(),
        epochs: config.epochs,
        test_samples: config.data.test_samples,
        optimizer: config.optimizer,
        checkpoint_every: None,
        workers: config.workers,
        audit_rate: 0.0,
        reduce: ReduceMode::Star,
        credit_window: tally_numerics::CREDIT_WINDOW,
    };
    Core::new(spec, 0, Digest(0), Recorded::default())
}

/// The step of that line.
pub(crate) fn committed(line: &StepLine) -> Committed {
    Committed {
        step: line.step,
        epoch: line.epoch,
        attempt: line.attempt,
        owners: 0,
        loss: Sums(line.loss.values().skip(1).copied().collect()),
        samples: line.samples,
        workers: line.workers,
        seconds: line.seconds,
        compute_seconds: line.compute_seconds,
        transfer_seconds: line.transfer_seconds,
        waiting_seconds: line.waiting_seconds,
        slowest: None,
        learning_rate: line.learning_rate,
        digest: line.digest,
    }
}

/// A run has one clock: two that are started one after the other may differ by more than lies between two events.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::start);

/// Tells an observer of an event, as of a run that began `seconds` ago.
pub(crate) fn tell(observer: &mut dyn Observer, core: &Core, seconds: f64, idle: Idle, event: &RunEvent<'_>) {
    let context = Context { core, clock: *CLOCK, seconds, stopping: false, idle, step_seconds: 0.5 };
    observer.observe(&context, event);
}
