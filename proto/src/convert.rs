//! Checked conversions between messages and the types of the other crates.

use std::borrow::Cow;

use bytes::Bytes;
use tally_numerics::layout::{Layout, Machine};
use tally_numerics::manifest::{BadManifest, Manifest, TensorSpec};
use tally_numerics::schema::{Named, Schema, Sums};
use tally_numerics::tree::Node;
use thiserror::Error;

use crate::{MAX_MICROBATCH, v1};

/// A message that is not valid.
#[derive(Debug, Error, PartialEq)]
pub enum BadMessage {
    /// A microbatch with more samples than one may have.
    #[error("a microbatch of {0} samples; the most is {MAX_MICROBATCH}")]
    TooManySamples(usize),
    /// Samples whose parts do not fit together.
    #[error("{ids} sample ids, {lengths} lengths and {bytes} bytes do not make samples")]
    Samples {
        /// How many ids.
        ids: usize,
        /// How many lengths.
        lengths: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// More or fewer numbers than the program has losses and metrics.
    #[error("{got} losses and metrics where the program has {wanted}")]
    Width {
        /// How many came.
        got: usize,
        /// How many the schema has.
        wanted: usize,
    },
    /// Losses that are NaN, infinite or absurdly large.
    #[error("a microbatch's losses are no sound numbers")]
    Losses,
    /// Metrics that are NaN, infinite or absurdly large.
    #[error("a microbatch's metrics are no sound numbers")]
    Metrics,
    /// Spans that cannot belong to one worker's time.
    #[error("its spans are out of order, too many, or of no time")]
    Spans,
    /// What no clock shows.
    #[error("its clock shows no time")]
    Clock,
    /// A manifest that is not valid.
    #[error(transparent)]
    Manifest(#[from] BadManifest),
}

/// A manifest as an offer.
#[must_use]
pub fn offer(manifest: &Manifest, device: String, numerics_class: String) -> v1::ModelManifest {
    let tensors = manifest.tensors().iter().map(|t| v1::Tensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        bound: t.bound,
        constant: t.constant,
        buffer: t.buffer,
        group: t.group,
    });
    v1::ModelManifest { tensors: tensors.collect(), device, numerics_class, peer: None }
}

/// The manifest of an offer.
///
/// # Errors
/// [`BadMessage::Manifest`] if it cannot be one.
pub fn manifest(offer: v1::ModelManifest) -> Result<Manifest, BadMessage> {
    let tensors = offer.tensors.into_iter().map(|t| TensorSpec {
        name: t.name,
        shape: t.shape,
        bound: t.bound,
        constant: t.constant,
        buffer: t.buffer,
        group: t.group,
    });
    Ok(Manifest::new(tensors.collect())?)
}

/// The samples of one microbatch. Only the program knows their format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Microbatch {
    ids: Vec<u32>,
    items: Bytes,
    /// Where each sample ends in `items`.
    ends: Vec<usize>,
    step: u64,
    leaf: u32,
}

impl Microbatch {
    /// Samples by id, each with its bytes.
    #[must_use]
    pub fn new<'a>(samples: impl IntoIterator<Item = (u32, Cow<'a, [u8]>)>) -> Self {
        let (mut ids, mut items, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (id, item) in samples {
            ids.push(id);
            items.extend_from_slice(&item);
            ends.push(items.len());
        }
        Self { ids, items: items.into(), ends, ..Self::default() }
    }

    /// The same as microbatch `leaf` of a step: random numbers of the computation are drawn by them.
    #[must_use]
    pub fn at(self, step: u64, leaf: u32) -> Self {
        Self { step, leaf, ..self }
    }

    /// The step and its leaf that these samples are computed for; zeros where nothing was said.
    #[must_use]
    pub fn place(&self) -> (u64, u32) {
        (self.step, self.leaf)
    }

    /// The samples of a message.
    ///
    /// # Errors
    /// [`BadMessage`] if there are too many, or if ids, lengths and bytes do not fit together.
    pub fn from_message(message: v1::Microbatch) -> Result<Self, BadMessage> {
        let v1::Microbatch { ids, items, lengths, .. } = message;
        if ids.len() > MAX_MICROBATCH {
            return Err(BadMessage::TooManySamples(ids.len()));
        }
        let wrong = BadMessage::Samples { ids: ids.len(), lengths: lengths.len(), bytes: items.len() };
        if ids.len() != lengths.len() {
            return Err(wrong);
        }
        let mut end = 0usize;
        let ends: Vec<usize> = lengths
            .iter()
            .map(|&length| {
                end = end.saturating_add(length as usize);
                end
            })
            .collect();
        if end != items.len() {
            return Err(wrong);
        }
        Ok(Self { ids, items, ends, ..Self::default() })
    }

    /// As a message: microbatch `leaf` of a step, or of the test pass.
    #[must_use]
    pub fn to_message(&self, leaf: u32, test: bool) -> v1::Microbatch {
        let lengths = (0..self.len()).map(|index| self.range(index).len() as u32).collect();
        v1::Microbatch { leaf, test, ids: self.ids.clone(), items: self.items.clone(), lengths }
    }

    /// How many samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The samples' ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The samples' bytes, in the order of the ids.
    pub fn items(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| &self.items[self.range(index)])
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index]
    }
}

/// Losses of a microbatch, `wanted` of them.
///
/// # Errors
/// [`BadMessage`] if they are more, fewer, or no sound numbers.
pub fn losses(losses: Vec<f64>, wanted: usize) -> Result<Sums, BadMessage> {
    if losses.len() != wanted {
        return Err(BadMessage::Width { got: losses.len(), wanted });
    }
    if are_sound(&losses) { Ok(Sums(losses)) } else { Err(BadMessage::Losses) }
}

/// The losses and metrics of a microbatch of the test pass. Losses may be NaN: a diverged model is tested too.
///
/// # Errors
/// [`BadMessage`] if they are more or fewer than the schema's, or a metric is no sound number.
pub fn evaluated(sums: Vec<f64>, schema: &Schema) -> Result<Sums, BadMessage> {
    if sums.len() != schema.width() {
        return Err(BadMessage::Width { got: sums.len(), wanted: schema.width() });
    }
    if are_sound(&sums[schema.losses().len()..]) { Ok(Sums(sums)) } else { Err(BadMessage::Metrics) }
}

/// Whether all numbers are far below where a sum of them could overflow. Any loss in single precision is.
fn are_sound(numbers: &[f64]) -> bool {
    // No NaN compares as less.
    numbers.iter().all(|number| number.abs() < 1e200)
}

/// Numbers by name, for people and tools.
#[must_use]
pub fn named(values: &Named) -> Vec<v1::NamedValue> {
    values.iter().map(|(name, &value)| v1::NamedValue { name: name.clone(), value }).collect()
}

/// Where the chunks of an attempt are added up.
#[must_use]
pub fn layout(begin: &v1::AttemptBegin) -> Layout {
    let machine = |machine: &v1::Machine| {
        let nodes = machine.nodes.iter().map(|node| Node(*node)).collect();
        Machine::new(machine.workers.clone(), &begin.owners, nodes)
    };
    Layout {
        owners: begin.owners.clone(),
        linked: begin.linked.clone(),
        machines: begin.machines.iter().map(machine).collect(),
    }
}

/// The machines of a layout, for the message that begins an attempt.
#[must_use]
pub fn machines(layout: &Layout) -> Vec<v1::Machine> {
    let machine = |machine: &Machine| v1::Machine {
        workers: machine.workers.clone(),
        nodes: machine.nodes.iter().map(|node| node.0).collect(),
    };
    layout.machines.iter().map(machine).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_numerics::schema::{LossSpec, MetricKind, MetricSpec};

    use super::*;

    fn two_samples() -> Microbatch {
        Microbatch::new([(3, vec![7; 5].into()), (9, vec![1, 2].into())])
    }

    #[test]
    fn samples_and_manifests_survive_the_wire() {
        let message = two_samples().to_message(4, false);
        assert_eq!((message.leaf, &message.lengths[..]), (4, &[5, 2][..]));
        let there = Microbatch::from_message(message).unwrap();
        assert_eq!(there, two_samples());
        assert_eq!(there.items().collect::<Vec<_>>(), [&[7; 5][..], &[1, 2]]);
        let there = Manifest::new(vec![TensorSpec::with_fan_in("a", &[2, 3], 7)]).unwrap();
        assert_eq!(manifest(offer(&there, String::new(), String::new())).unwrap(), there);
    }

    #[test]
    fn trust_1_samples_that_do_not_fit_are_refused() {
        let broken = |spoil: fn(&mut v1::Microbatch)| {
            let mut message = two_samples().to_message(0, false);
            spoil(&mut message);
            Microbatch::from_message(message).unwrap_err()
        };
        assert!(matches!(broken(|l| l.items = vec![0; 9].into()), BadMessage::Samples { .. }));
        assert!(matches!(broken(|l| l.lengths = vec![7]), BadMessage::Samples { .. }));
        assert!(matches!(broken(|l| l.lengths = vec![u32::MAX, 8]), BadMessage::Samples { .. }));
        assert!(matches!(broken(|l| l.ids = vec![0; 1 << 16]), BadMessage::TooManySamples(_)));
    }

    #[test]
    fn trust_1_losses_and_metrics_are_counted_and_sound() {
        let loss = LossSpec { name: "a".into(), label: "a".into() };
        let kind = MetricKind::Ratio { higher_is_better: true };
        let metric = MetricSpec { name: "right".into(), label: "right".into(), kind };
        let schema = Schema::new(vec![loss], vec![metric], None).unwrap();
        assert_eq!(losses(vec![1.0], 1), Ok(Sums(vec![1.0])));
        assert_eq!(losses(vec![1.0], 2), Err(BadMessage::Width { got: 1, wanted: 2 }));
        assert_eq!(losses(vec![f64::NAN], 1), Err(BadMessage::Losses));
        assert_eq!(losses(vec![1e300], 1), Err(BadMessage::Losses));
        assert!(evaluated(vec![f64::NAN, 1.0, 2.0], &schema).is_ok());
        assert_eq!(evaluated(vec![0.0, f64::INFINITY, 2.0], &schema), Err(BadMessage::Metrics));
        assert_eq!(evaluated(vec![0.0; 4], &schema), Err(BadMessage::Width { got: 4, wanted: 3 }));
    }
}
