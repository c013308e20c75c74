//! What a program measures, as sums that add up along the tree (**SUM-1**).
//!
//! A [`Schema`] names a program's losses and metrics. Workers send [`Sums`] over the samples of a microbatch in
//! the schema's order; the coordinator adds them along the same tree as the gradient and never needs to know what
//! they mean. An [`Evaluation`] is the result of a test pass, by name.

use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sum::along_tree;

/// Numbers by name, in the order of the schema.
pub type Named = IndexMap<String, f64>;

/// The most numbers that a microbatch's sums may have: 16 KiB of them.
pub const MAX_WIDTH: usize = 1 << 11;

/// A part of the loss, or a metric: its name for machines and its label for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossSpec {
    /// The name in the journal, in metrics and in files: `label`.
    pub name: String,
    /// The name on the page and the console: `digit`.
    pub label: String,
}

/// A metric of the test pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricSpec {
    /// The name in the journal, in metrics and in files: `digit_accuracy`.
    pub name: String,
    /// The name on the page and the console: `digit`.
    pub label: String,
    /// The kind of its sums.
    #[serde(flatten)]
    pub kind: MetricKind,
}

/// The kind of a metric's sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MetricKind {
    /// A numerator and a denominator; the metric is their quotient, 0 to 1 for a share of right answers.
    Ratio {
        /// Whether more is better.
        higher_is_better: bool,
    },
    /// Counts of the integers from `first` on; the first and the last bin also count everything beyond them.
    Histogram {
        /// The integer of the first bin.
        first: i64,
        /// How many bins.
        bins: usize,
    },
    /// Counts by true class (row) and answered class (column).
    Confusion {
        /// How many classes.
        classes: usize,
    },
}

impl MetricKind {
    /// How many numbers its sums have.
    #[must_use]
    pub fn width(&self) -> usize {
        match *self {
            Self::Ratio { .. } => 2,
            Self::Histogram { bins, .. } => bins,
            Self::Confusion { classes } => classes.saturating_mul(classes),
        }
    }
}

/// Why a schema is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadSchema {
    /// There is no loss.
    #[error("a program has at least one loss")]
    NoLoss,
    /// A name that cannot be a part of a metric's name.
    #[error("{0:?} is no name: use lower-case letters, digits and _, beginning with a letter")]
    Name(String),
    /// A name that is used twice or reserved.
    #[error("the name {0:?} is taken; give each loss and each metric a name of its own")]
    Twice(String),
    /// The metric that picks the best checkpoint is not in the schema.
    #[error("{0:?} picks the best checkpoint, but no ratio has that name")]
    Best(String),
    /// Too many numbers.
    #[error("the losses and metrics have {0} numbers; the most is {MAX_WIDTH}")]
    Width(usize),
}

/// A program's losses and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SchemaParts")]
pub struct Schema {
    losses: Vec<LossSpec>,
    metrics: Vec<MetricSpec>,
    best: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    weighted: bool,
}

#[derive(Deserialize)]
struct SchemaParts {
    losses: Vec<LossSpec>,
    metrics: Vec<MetricSpec>,
    best: Option<String>,
    #[serde(default)]
    weighted: bool,
}

impl TryFrom<SchemaParts> for Schema {
    type Error = BadSchema;
    fn try_from(parts: SchemaParts) -> Result<Self, BadSchema> {
        let schema = Self::new(parts.losses, parts.metrics, parts.best)?;
        Ok(if parts.weighted { schema.weighted() } else { schema })
    }
}

impl Schema {
    /// A schema whose metric `best`, or the loss if it is `None`, picks the best checkpoint.
    ///
    /// # Errors
    /// [`BadSchema`] says what is wrong with it.
    pub fn new(
        losses: Vec<LossSpec>,
        metrics: Vec<MetricSpec>,
        best: Option<String>,
    ) -> Result<Self, BadSchema> {
        if losses.is_empty() {
            return Err(BadSchema::NoLoss);
        }
        check_names(losses.iter().map(|l| &l.name))?;
        check_names(metrics.iter().map(|m| &m.name))?;
        let schema = Self { losses, metrics, best, weighted: false };
        if let Some(best) = &schema.best
            && !schema.ratios().any(|(metric, _)| metric.name == *best)
        {
            return Err(BadSchema::Best(best.clone()));
        }
        match schema.width() {
            width if width > MAX_WIDTH => Err(BadSchema::Width(width)),
            _ => Ok(schema),
        }
    }

    /// The same with samples that weigh differently, such as texts by their tokens: after the parts of the loss, each of
    /// which is multiplied by the weight, the sums have the weight itself, and means are over it.
    #[must_use]
    pub fn weighted(self) -> Self {
        Self { weighted: true, ..self }
    }

    /// Whether samples weigh differently.
    #[must_use]
    pub fn is_weighted(&self) -> bool {
        self.weighted
    }

    /// How many numbers the losses' sums of a microbatch have: the parts, and the weight if samples weigh differently.
    #[must_use]
    pub fn loss_width(&self) -> usize {
        self.losses.len() + usize::from(self.weighted)
    }

    /// The weight of a batch relative to its number of samples, from the sums of its losses over that number; 1 unless
    /// samples weigh differently.
    #[must_use]
    pub fn mean_weight(&self, means: &Sums) -> f64 {
        if self.weighted { means.0.get(self.losses.len()).copied().unwrap_or(1.0) } else { 1.0 }
    }

    /// The parts of the loss.
    #[must_use]
    pub fn losses(&self) -> &[LossSpec] {
        &self.losses
    }

    /// The metrics of the test pass.
    #[must_use]
    pub fn metrics(&self) -> &[MetricSpec] {
        &self.metrics
    }

    /// The metrics that are one number, and whether more of it is better.
    pub fn ratios(&self) -> impl Iterator<Item = (&MetricSpec, bool)> {
        self.metrics.iter().filter_map(|metric| match metric.kind {
            MetricKind::Ratio { higher_is_better } => Some((metric, higher_is_better)),
            _ => None,
        })
    }

    /// The metric that picks the best checkpoint; `None` where the loss does.
    #[must_use]
    pub fn best(&self) -> Option<&MetricSpec> {
        let best = self.best.as_ref()?;
        self.metrics.iter().find(|metric| metric.name == *best)
    }

    /// How many numbers the sums of a test microbatch have: those of the losses, then the metrics'.
    #[must_use]
    pub fn width(&self) -> usize {
        let metrics = self.metrics.iter().map(|m| m.kind.width());
        metrics.fold(self.loss_width(), usize::saturating_add)
    }

    /// A step's mean losses by name, after their `total`, from the sums of its losses over its number of samples.
    #[must_use]
    pub fn named_losses(&self, means: &Sums) -> Named {
        let weight = self.mean_weight(means);
        let parts = means.0.iter().take(self.losses.len());
        let means = Sums(parts.map(|&part| if self.weighted { part / weight } else { part }).collect());
        let parts = self.losses.iter().zip(&means.0).map(|(loss, &mean)| (loss.name.clone(), mean));
        std::iter::once(("total".to_owned(), means.total())).chain(parts).collect()
    }

    /// The result of a test pass over `samples` samples, from the sums of its microbatches in their order.
    ///
    /// JSON has no NaN. So a NaN, such as the loss of a diverged model, becomes the largest number.
    #[must_use]
    pub fn evaluation(
        &self,
        samples: usize,
        microbatches: impl IntoIterator<Item = Option<Sums>>,
    ) -> Evaluation {
        let sums = Sums::along_tree(microbatches, self.width());
        let number = |x: f64| if x.is_finite() { x } else { f64::MAX };
        let (losses, mut rest) = sums.0.split_at(self.loss_width());
        let means = Sums(losses.to_vec()).scaled(1.0 / samples.max(1) as f64);
        let loss = self.named_losses(&means).into_iter().map(|(name, mean)| (name, number(mean)));
        let mut undefined = Vec::new();
        let metrics = self.metrics.iter().map(|metric| {
            let (own, others) = rest.split_at(metric.kind.width());
            rest = others;
            let counts = |sums: &[f64]| sums.iter().map(|&count| count as u64).collect();
            let value = match metric.kind {
                MetricKind::Ratio { .. } if own[1] == 0.0 => {
                    undefined.push(metric.name.clone());
                    MetricValue::Ratio(0.0)
                }
                MetricKind::Ratio { .. } => MetricValue::Ratio(number(own[0] / own[1])),
                MetricKind::Histogram { .. } => MetricValue::Histogram(counts(own)),
                MetricKind::Confusion { classes } => {
                    MetricValue::Confusion(own.chunks(classes.max(1)).map(counts).collect())
                }
            };
            (metric.name.clone(), value)
        });
        let metrics = metrics.collect();
        Evaluation { samples, loss: loss.collect(), metrics, undefined }
    }

    /// The quality of a test pass, by the metric that picks the best checkpoint. Greater is better.
    #[must_use]
    pub fn score(&self, evaluation: &Evaluation) -> f64 {
        let best = self.best.as_ref().and_then(|best| self.ratios().find(|(m, _)| m.name == *best));
        match best {
            Some((metric, true)) => evaluation.ratio(&metric.name),
            Some((metric, false)) => -evaluation.ratio(&metric.name),
            None => -evaluation.total_loss(),
        }
    }

    /// A test pass in one line: `loss 0.0454, digit 98.74%, sum 96.72%`.
    #[must_use]
    pub fn summary(&self, evaluation: &Evaluation) -> String {
        self.describe(&evaluation.numbers())
    }

    /// A test pass in one line, as [`summary`](Self::summary), from its [`numbers`](Evaluation::numbers).
    #[must_use]
    pub fn describe(&self, numbers: &Named) -> String {
        let number = |name: &str| numbers.get(name).copied().unwrap_or(0.0);
        let ratios = self.ratios().map(|(metric, _)| match number(&metric.name) {
            share @ 0.0..=1.0 => format!(", {} {:.2}%", metric.label, 100.0 * share),
            ratio => format!(", {} {ratio:.4}", metric.label),
        });
        format!("loss {:.4}{}", number("loss"), ratios.collect::<String>())
    }
}

/// Checks that names are sound and differ from each other, from `total` and from `loss`, which stand beside them.
fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), BadSchema> {
    let mut seen = std::collections::BTreeSet::from(["total".to_owned(), "loss".to_owned()]);
    for name in names {
        let sound =
            |(at, c): (usize, char)| c.is_ascii_lowercase() || at > 0 && (c.is_ascii_digit() || c == '_');
        if name.is_empty() || name.len() > 64 || !name.chars().enumerate().all(sound) {
            return Err(BadSchema::Name(name.clone()));
        }
        if !seen.insert(name.clone()) {
            return Err(BadSchema::Twice(name.clone()));
        }
    }
    Ok(())
}

/// Numbers that add up: a microbatch's losses, or its losses and metrics, in the schema's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums(pub Vec<f64>);

impl Sums {
    /// The sum of `2^k` microbatches' numbers along their tree, `width` zeros if all are empty. The rest of the
    /// power of two is taken as empty.
    #[must_use]
    pub fn along_tree(microbatches: impl IntoIterator<Item = Option<Self>>, width: usize) -> Self {
        let mut all: Vec<Option<Self>> = microbatches.into_iter().collect();
        all.resize_with(all.len().next_power_of_two(), || None);
        let sum = along_tree(all, |mut left: Self, right| {
            left.0.iter_mut().zip(&right.0).for_each(|(l, r)| *l += r);
            left
        });
        sum.unwrap_or_else(|| Self(vec![0.0; width]))
    }

    /// The sum of all, from the first on.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.0.iter().copied().reduce(|a, b| a + b).unwrap_or(0.0)
    }

    /// Every number multiplied by `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.0.iter_mut().for_each(|x| *x *= factor);
        self
    }

    /// Whether no number is NaN or infinite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.0.iter().all(|x| x.is_finite())
    }
}

/// The value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MetricValue {
    /// One number.
    Ratio(f64),
    /// A count for each bin.
    Histogram(Vec<u64>),
    /// `counts[true class][answered class]`.
    Confusion(Vec<Vec<u64>>),
}

/// The result of a test pass, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Samples of the test set.
    pub samples: usize,
    /// Mean losses over the test set: `total`, then each part.
    pub loss: Named,
    /// The metrics.
    pub metrics: IndexMap<String, MetricValue>,
    /// Metrics whose denominator is zero over the whole test set: they are shown as 0.
    #[serde(skip)]
    pub undefined: Vec<String>,
}

impl Evaluation {
    /// The mean loss, all parts together.
    #[must_use]
    pub fn total_loss(&self) -> f64 {
        self.loss.get("total").copied().unwrap_or(f64::MAX)
    }

    /// A metric that is one number; 0 if there is none of this name.
    #[must_use]
    pub fn ratio(&self, name: &str) -> f64 {
        match self.metrics.get(name) {
            Some(MetricValue::Ratio(ratio)) => *ratio,
            _ => 0.0,
        }
    }

    /// The metrics that are one number.
    pub fn ratios(&self) -> impl Iterator<Item = (&str, f64)> {
        self.metrics.iter().filter_map(|(name, value)| match value {
            MetricValue::Ratio(ratio) => Some((name.as_str(), *ratio)),
            _ => None,
        })
    }

    /// The mean loss as `loss`, and every metric that is one number.
    #[must_use]
    pub fn numbers(&self) -> Named {
        let ratios = self.ratios().map(|(name, ratio)| (name.to_owned(), ratio));
        std::iter::once(("loss".to_owned(), self.total_loss())).chain(ratios).collect()
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn loss(name: &str) -> LossSpec {
        LossSpec { name: name.into(), label: name.into() }
    }

    fn metric(name: &str, kind: MetricKind) -> MetricSpec {
        MetricSpec { name: name.into(), label: name.to_uppercase(), kind }
    }

    fn schema() -> Schema {
        let metrics = vec![
            metric("right", MetricKind::Ratio { higher_is_better: true }),
            metric("errors", MetricKind::Histogram { first: -1, bins: 3 }),
            metric("confusion", MetricKind::Confusion { classes: 2 }),
        ];
        Schema::new(vec![loss("a"), loss("b")], metrics, Some("right".into())).unwrap()
    }

    #[test]
    fn sums_become_an_evaluation_by_name() {
        let sums = |x: f64| Some(Sums(vec![x, 2.0 * x, 3.0, 4.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0]));
        let evaluation = schema().evaluation(8, [sums(2.0), None, sums(6.0)]);
        let loss: Vec<(&str, f64)> = evaluation.loss.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(loss, [("total", 3.0), ("a", 1.0), ("b", 2.0)]);
        assert_eq!(evaluation.ratio("right"), 0.75);
        assert_eq!(evaluation.metrics["errors"], MetricValue::Histogram(vec![2, 4, 6]));
        assert_eq!(evaluation.metrics["confusion"], MetricValue::Confusion(vec![vec![2, 4], vec![6, 8]]));
        assert_eq!(schema().summary(&evaluation), "loss 3.0000, RIGHT 75.00%");
        assert_eq!(schema().score(&evaluation), 0.75);
        let text = serde_json::to_string(&evaluation).unwrap();
        assert_eq!(serde_json::from_str::<Evaluation>(&text).unwrap(), evaluation);
    }

    #[test]
    fn a_diverged_model_and_an_empty_denominator_are_numbers() {
        let evaluation = schema().evaluation(0, [Some(Sums([vec![f64::NAN, 1.0], vec![0.0; 9]].concat()))]);
        assert_eq!((evaluation.total_loss(), evaluation.ratio("right")), (f64::MAX, 0.0));
        assert!(evaluation.undefined.iter().any(|name| name == "right"), "{:?}", evaluation.undefined);
        assert_eq!(schema().evaluation(4, []).total_loss(), 0.0);
    }

    #[test]
    fn the_loss_picks_the_best_where_no_metric_does() {
        let schema = Schema::new(vec![loss("a")], vec![], None).unwrap();
        let score = |x: f64| schema.score(&schema.evaluation(1, [Some(Sums(vec![x]))]));
        assert!(score(1.0) > score(2.0) && score(2.0) > score(f64::NAN));
    }

    #[test]
    fn what_is_no_schema_is_named() {
        let ratio = |name: &str| metric(name, MetricKind::Ratio { higher_is_better: true });
        let of = |losses: Vec<LossSpec>, metrics, best: Option<&str>| {
            Schema::new(losses, metrics, best.map(Into::into)).unwrap_err()
        };
        assert_eq!(of(vec![], vec![], None), BadSchema::NoLoss);
        assert_eq!(of(vec![loss("total")], vec![], None), BadSchema::Twice("total".into()));
        assert_eq!(of(vec![loss("a")], vec![ratio("loss")], None), BadSchema::Twice("loss".into()));
        assert_eq!(of(vec![loss("a b")], vec![], None), BadSchema::Name("a b".into()));
        assert_eq!(of(vec![loss("a")], vec![ratio("x"), ratio("x")], None), BadSchema::Twice("x".into()));
        assert_eq!(of(vec![loss("a")], vec![ratio("x")], Some("y")), BadSchema::Best("y".into()));
        let huge = metric("m", MetricKind::Confusion { classes: 1 << 40 });
        assert!(matches!(of(vec![loss("a")], vec![huge], None), BadSchema::Width(_)));
    }

    #[test]
    fn a_schema_reads_as_it_is_written_and_a_wrong_one_is_refused() {
        let mut value = serde_json::to_value(schema()).unwrap();
        assert_eq!(serde_json::from_value::<Schema>(value.clone()).unwrap(), schema());
        value["best"] = "nothing".into();
        assert!(serde_json::from_value::<Schema>(value).is_err());
    }
}
