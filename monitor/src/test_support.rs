//! A program with two losses and a metric of each kind, for tests.

use tally_numerics::digest::Digest;
use tally_numerics::schema::{Evaluation, LossSpec, MetricKind, MetricSpec, Schema, Sums};
use tally_run::journal::StepLine;

/// The losses `a` and `b`; the metrics `right`, `errors` and `confusion`; `right` picks the best checkpoint.
#[allow(clippy::unwrap_used)]
pub(crate) fn schema() -> Schema {
    let loss = |name: &str| LossSpec { name: name.into(), label: format!("loss {name}") };
    let metric =
        |name: &str, label: &str, kind| MetricSpec { name: name.into(), label: label.into(), kind };
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
