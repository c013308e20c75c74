//! The list of a network's tensors. The coordinator knows nothing else of the network.
//!
//! A replica, a momentum and a gradient are flat vectors of `f32` with the tensors one
//! after the other in the manifest's order, each row-major. That order is the order in
//! which gradients become ready, deepest layer first, so that a gradient can leave while
//! shallower layers are still being computed. Names and shapes are PyTorch's.

use std::collections::HashSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The most elements a network can have: 2³⁰, 4 GiB of `f32`.
pub const MAX_ELEMENTS: usize = 1 << 30;
/// The most tensors a network can have.
pub const MAX_TENSORS: usize = 1 << 14;

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
}

impl TensorSpec {
    /// A tensor initialised as PyTorch does a convolution's or linear layer's weight and
    /// bias by default: uniform in ±1/√fan_in.
    #[must_use]
    pub fn with_fan_in(name: impl Into<String>, shape: &[u32], fan_in: u32) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), bound: 1.0 / f64::from(fan_in).sqrt() }
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
        for t in &tensors {
            if t.name.is_empty() || t.name.len() > 256 || !names.insert(t.name.as_str()) {
                return Err(BadManifest::Name(t.name.clone()));
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
        }
        offsets.push(offset);
        Ok(Self { tensors, offsets })
    }

    /// The tensors, in the order of the flat vectors.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The number of elements of a flat vector.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A manifest is never empty.
    pub fn len(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
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
        let nan = TensorSpec { bound: f64::NAN, ..spec("a", &[1]) };
        assert_eq!(bad(vec![nan]), BadManifest::Bound("a".into()));
    }
}
