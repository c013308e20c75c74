//! The list of a network's tensors. The coordinator knows nothing else of the network.
//!
//! Parameters, moments and a gradient are flat vectors of `f32` with the tensors one
//! after the other in the manifest's order, each row-major. That order is the order in
//! which gradients become ready, deepest layer first, so that a gradient can leave while
//! shallower layers are still being computed. Names and shapes are PyTorch's.
//!
//! Behind the parameters come the buffers, such as BatchNorm's running statistics: a gradient has the samples' mean change
//! of each. Constant tensors come last: they are a part of the state, and gradients and moments end before them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The most elements a network can have: 2³⁰, 4 GiB of `f32`.
pub const MAX_ELEMENTS: usize = 1 << 30;
/// The most tensors a network can have.
pub const MAX_TENSORS: usize = 1 << 14;
/// The most groups of tensors that an optimizer can tell apart.
pub const MAX_GROUPS: usize = 1 << 8;

/// Why a list of tensors is not a valid manifest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadManifest {
    /// No tensors, or too many.
    #[error("a network has 1 to {MAX_TENSORS} tensors, not {0}")]
    Tensors(usize),
    /// A name that is empty, too long or used twice.
    #[error("tensor {0:?}: a name is unique and has 1 to 256 bytes")]
    Name(String),
    /// A shape with a zero, too many axes or too many elements.
    #[error(
        "tensor {0:?}: its shape has a zero, over 8 axes, or takes the network over {MAX_ELEMENTS} elements"
    )]
    Shape(String),
    /// A tensor before one of another kind that must come first, or nothing that is trained.
    #[error(
        "tensor {0:?}: the tensors that are trained come before buffers, these before the constant ones, and at least one \
         is trained"
    )]
    Order(String),
    /// A group's number that is too great, or one of a tensor that is not trained.
    #[error("tensor {0:?}: a trained tensor's group is under {MAX_GROUPS}, and the others have none")]
    Group(String),
    /// An initial bound that is negative, NaN or infinite.
    #[error("tensor {0:?}: the bound of its initial values is not a finite number ≥ 0")]
    Bound(String),
}

/// One tensor of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// PyTorch's name, such as `conv1.weight`.
    pub name: String,
    /// PyTorch's shape, outermost axis first.
    pub shape: Vec<u32>,
    /// Initial values are uniform in ±bound.
    pub bound: f64,
    /// It is not trained: it is a part of the model's state, and has no gradient and no update.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub constant: bool,
    /// It changes as the samples say, and not by the optimizer: a running statistic.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub buffer: bool,
    /// The optimizer's group that it belongs to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub group: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn is_zero(group: &u32) -> bool {
    *group == 0
}

impl TensorSpec {
    /// A tensor initialised as PyTorch does a convolution's or linear layer's weight and
    /// bias by default: uniform in ±1/√fan_in.
    #[must_use]
    pub fn with_fan_in(name: impl Into<String>, shape: &[u32], fan_in: u32) -> Self {
        Self::new(name, shape, 1.0 / f64::from(fan_in).sqrt())
    }

    /// A parameter of the optimizer's first group.
    #[must_use]
    pub fn new(name: impl Into<String>, shape: &[u32], bound: f64) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), bound, constant: false, buffer: false, group: 0 }
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().map(|&d| d as usize).product()
    }
}

/// A network's tensors in the order of its flat vectors. Only valid ones exist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Vec<TensorSpec>", try_from = "Vec<TensorSpec>")]
pub struct Manifest {
    tensors: Vec<TensorSpec>,
    offsets: Vec<usize>,
    segments: Segments,
}

/// The elements of a gradient by the group that they belong to: stretches of a flat vector, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments(Arc<[(usize, Segment)]>);

/// What the elements of a stretch belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A group of parameters.
    Group(u32),
    /// Buffers.
    Buffers,
}

impl Segments {
    /// All elements of a vector of any length are of group 0.
    #[must_use]
    pub fn one_group() -> Self {
        Self([(usize::MAX, Segment::Group(0))].into())
    }

    /// The number of groups: the greatest number, and one.
    #[must_use]
    pub fn groups(&self) -> usize {
        let numbers = self.0.iter().map(|(_, segment)| match segment {
            Segment::Group(group) => *group as usize + 1,
            Segment::Buffers => 0,
        });
        numbers.max().unwrap_or(0)
    }

    /// The stretches of `range`, in order, and what each belongs to.
    pub fn within(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, Segment)> + '_ {
        let first = self.0.partition_point(|(end, _)| *end <= range.start);
        let mut start = range.start;
        self.0[first..].iter().map_while(move |&(end, segment)| {
            let stretch = start..end.min(range.end);
            start = stretch.end;
            (!stretch.is_empty()).then_some((stretch, segment))
        })
    }
}

impl Manifest {
    /// Checks a list of tensors, which may come from a peer or a file.
    ///
    /// # Errors
    /// [`BadManifest`] names the first tensor that is wrong.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, BadManifest> {
        if tensors.is_empty() || tensors.len() > MAX_TENSORS {
            return Err(BadManifest::Tensors(tensors.len()));
        }
        let mut names = HashSet::new();
        let mut offsets = Vec::with_capacity(tensors.len() + 1);
        let mut offset = 0usize;
        let mut segments: Vec<(usize, Segment)> = Vec::new();
        let mut constants = false;
        for t in &tensors {
            if t.name.is_empty() || t.name.len() > 256 || !names.insert(t.name.as_str()) {
                return Err(BadManifest::Name(t.name.clone()));
            }
            let buffers = segments.last().is_some_and(|(_, segment)| *segment == Segment::Buffers);
            let late = t.constant && t.buffer
                || !t.constant && (constants || buffers && !t.buffer)
                || (t.constant || t.buffer) && segments.is_empty();
            if late {
                return Err(BadManifest::Order(t.name.clone()));
            }
            if t.group as usize >= MAX_GROUPS || (t.constant || t.buffer) && t.group > 0 {
                return Err(BadManifest::Group(t.name.clone()));
            }
            if !(t.bound.is_finite() && t.bound >= 0.0) {
                return Err(BadManifest::Bound(t.name.clone()));
            }
            offsets.push(offset);
            let elements = t.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
            offset = elements
                .filter(|&n| n > 0 && t.shape.len() <= 8)
                .and_then(|n| offset.checked_add(n))
                .filter(|&n| n <= MAX_ELEMENTS)
                .ok_or_else(|| BadManifest::Shape(t.name.clone()))?;
            if t.constant {
                constants = true;
                continue;
            }
            let segment = if t.buffer { Segment::Buffers } else { Segment::Group(t.group) };
            match segments.last_mut() {
                Some((end, same)) if *same == segment => *end = offset,
                _ => segments.push((offset, segment)),
            }
        }
        offsets.push(offset);
        Ok(Self { tensors, offsets, segments: Segments(segments.into()) })
    }

    /// The tensors, in the order of the flat vectors.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The number of elements of a state's flat vectors.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A manifest is never empty.
    pub fn len(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The number of elements of a gradient and of each moment: those of parameters and buffers, which come first.
    #[must_use]
    pub fn trained_len(&self) -> usize {
        self.segments.0.last().map_or(0, |(end, _)| *end)
    }

    /// The number of elements that the optimizer trains, without buffers: the gradient's norm is theirs.
    #[must_use]
    pub fn parameters_len(&self) -> usize {
        let parameters = self.segments.0.iter().rev().find(|(_, segment)| *segment != Segment::Buffers);
        parameters.map_or(0, |(end, _)| *end)
    }

    /// The groups of the optimizer that the elements of a gradient belong to.
    #[must_use]
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The tensors that are not constant: those of a gradient, and of a moment.
    #[must_use]
    pub fn without_constants(&self) -> Self {
        let count = self.tensors.iter().take_while(|tensor| !tensor.constant).count();
        Self {
            tensors: self.tensors[..count].to_vec(),
            offsets: self.offsets[..=count].to_vec(),
            segments: self.segments.clone(),
        }
    }

    /// Where tensor `index` lies in a flat vector.
    #[must_use]
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// The index of the tensor called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|t| t.name == name)
    }

    /// The indices of the tensors in the order of their names, as checkpoints list them.
    #[must_use]
    pub fn by_name(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by(|&a, &b| self.tensors[a].name.cmp(&self.tensors[b].name));
        order
    }

    /// SHA-256 over the tensors of a flat vector in the order of their names, each as
    /// little-endian `f32`, in hex: `parameters_sha256` of a run's summary.
    ///
    /// # Panics
    /// If `values` does not have the manifest's length.
    #[must_use]
    pub fn sha256(&self, values: &[f32]) -> String {
        assert_eq!(values.len(), self.len(), "a flat vector has the manifest's length");
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        for index in self.by_name() {
            for part in values[self.range(index)].chunks(1 << 16) {
                bytes.clear();
                bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
                hash.update(&bytes);
            }
        }
        hex(&hash.finalize())
    }
}

impl TryFrom<Vec<TensorSpec>> for Manifest {
    type Error = BadManifest;
    fn try_from(tensors: Vec<TensorSpec>) -> Result<Self, BadManifest> {
        Self::new(tensors)
    }
}

impl From<Manifest> for Vec<TensorSpec> {
    fn from(manifest: Manifest) -> Self {
        manifest.tensors
    }
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[u32]) -> TensorSpec {
        TensorSpec::with_fan_in(name, shape, 4)
    }

    #[test]
    fn tensors_lie_one_after_the_other() {
        let manifest = Manifest::new(vec![spec("b", &[2, 3]), spec("a", &[4])]).unwrap();
        assert_eq!((manifest.len(), manifest.range(0), manifest.range(1)), (10, 0..6, 6..10));
        assert_eq!(manifest.by_name(), [1, 0]);
        assert_eq!(manifest.find("a"), Some(1));
    }

    #[test]
    fn segments_are_the_groups_and_the_buffers() {
        let group = |name, group| TensorSpec { group, ..spec(name, &[4]) };
        let buffer = TensorSpec { buffer: true, ..spec("e", &[2]) };
        let constant = TensorSpec { constant: true, ..spec("f", &[3]) };
        let tensors = vec![group("a", 1), group("b", 0), group("c", 0), group("d", 1), buffer, constant];
        let manifest = Manifest::new(tensors).unwrap();
        assert_eq!((manifest.parameters_len(), manifest.trained_len(), manifest.len()), (16, 18, 21));
        let segments = manifest.segments();
        assert_eq!(segments.groups(), 2);
        let within = |range| segments.within(range).collect::<Vec<_>>();
        let (zero, one) = (Segment::Group(0), Segment::Group(1));
        assert_eq!(within(0..18), [(0..4, one), (4..12, zero), (12..16, one), (16..18, Segment::Buffers)]);
        assert_eq!(within(5..12), [(5..12, zero)]);
        assert_eq!(within(3..5), [(3..4, one), (4..5, zero)]);
        assert_eq!(within(4..4), []);
        assert_eq!(Segments::one_group().within(7..9).collect::<Vec<_>>(), [(7..9, zero)]);
    }

    #[test]
    fn the_hash_is_over_names_in_order_and_little_endian() {
        let manifest = Manifest::new(vec![spec("b", &[1]), spec("a", &[1])]).unwrap();
        // sha256 of 00 00 80 3f (1.0) and 00 00 00 40 (2.0).
        let by_hand = hex(&Sha256::digest([0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]));
        assert_eq!(manifest.sha256(&[2.0, 1.0]), by_hand);
    }

    #[test]
    fn a_peers_manifest_is_checked() {
        let bad = |tensors| Manifest::new(tensors).unwrap_err();
        assert_eq!(bad(vec![]), BadManifest::Tensors(0));
        assert_eq!(bad(vec![spec("a", &[1]), spec("a", &[1])]), BadManifest::Name("a".into()));
        assert_eq!(bad(vec![spec("", &[1])]), BadManifest::Name(String::new()));
        assert_eq!(bad(vec![spec("a", &[3, 0])]), BadManifest::Shape("a".into()));
        assert_eq!(bad(vec![spec("a", &[u32::MAX; 8])]), BadManifest::Shape("a".into()));
        assert_eq!(bad(vec![spec("a", &[1 << 29]), spec("b", &[1 << 30])]), BadManifest::Shape("b".into()));
        let constant = |name| TensorSpec { constant: true, ..spec(name, &[2]) };
        assert_eq!(bad(vec![constant("a")]), BadManifest::Order("a".into()));
        assert_eq!(
            bad(vec![spec("a", &[1]), constant("b"), spec("c", &[1])]),
            BadManifest::Order("c".into())
        );
        let manifest = Manifest::new(vec![spec("a", &[3]), constant("b")]).unwrap();
        assert_eq!((manifest.trained_len(), manifest.len()), (3, 5));
        assert_eq!(manifest.without_constants().len(), 3);
        let buffer = |name| TensorSpec { buffer: true, ..spec(name, &[2]) };
        assert_eq!(bad(vec![spec("a", &[1]), buffer("b"), spec("c", &[1])]), BadManifest::Order("c".into()));
        assert_eq!(bad(vec![spec("a", &[1]), constant("b"), buffer("c")]), BadManifest::Order("c".into()));
        let group = |name, group| TensorSpec { group, ..spec(name, &[2]) };
        assert_eq!(bad(vec![group("a", 256)]), BadManifest::Group("a".into()));
        assert_eq!(
            bad(vec![spec("a", &[1]), TensorSpec { group: 1, ..buffer("b") }]),
            BadManifest::Group("b".into())
        );
        let nan = TensorSpec { bound: f64::NAN, ..spec("a", &[1]) };
        assert_eq!(bad(vec![nan]), BadManifest::Bound("a".into()));
    }
}
