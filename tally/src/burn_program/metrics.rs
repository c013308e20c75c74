//! Metrics of the test pass: quotients of two sums.

use burn::data::dataloader::Progress;
use burn::train::metric::{
    AccuracyInput, AccuracyMetric, Adaptor, LossInput, LossMetric, Metric, MetricMetadata, Numeric,
};
use burn_flex::Flex;

/// What a batch adds to a metric, which is the sum of the numerators over the sum of the denominators.
///
/// A metric that is no such quotient (an area under a curve, BLEU) cannot be added up over workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Such as the number of right answers.
    pub numerator: f64,
    /// Such as the number of answers.
    pub denominator: f64,
}

/// The share of samples whose class has the largest output, as Burn's `AccuracyMetric` counts it.
pub fn accuracy<S: Adaptor<AccuracyInput<Flex>>>(output: &S) -> Ratio {
    let mut metric = AccuracyMetric::<Flex>::new();
    let (percent, samples) = measure(&mut metric, &output.adapt());
    Ratio { numerator: (percent / 100.0 * samples).round(), denominator: samples }
}

/// The mean loss of a batch, as Burn's `LossMetric` has it.
pub(super) fn loss<S: Adaptor<LossInput<Flex>>>(output: &S) -> f64 {
    measure(&mut LossMetric::<Flex>::new(), &output.adapt()).0
}

/// The value of one of Burn's metrics over one batch, and the number of samples that it counted.
fn measure<M: Metric + Numeric>(metric: &mut M, input: &M::Input) -> (f64, f64) {
    let none = || Progress { items_processed: 0, items_total: 0 };
    let metadata = MetricMetadata { progress: none(), global_progress: none(), iteration: None, lr: None };
    let _ = metric.update(input, &metadata);
    match metric.value() {
        burn::train::metric::NumericEntry::Value(value) => (value, 1.0),
        burn::train::metric::NumericEntry::Aggregated { aggregated_value, count } => {
            (aggregated_value, count as f64)
        }
    }
}
