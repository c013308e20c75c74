//! The state of a run after a step: the model's parameters and the optimizer's moments.

use crate::digest::{self, Digest};
use crate::manifest::Manifest;

/// Parameters and moments, flat, in the order of a [`Manifest`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The values of all tensors, the constant ones included.
    pub parameters: Vec<f32>,
    /// What the optimizer keeps, such as SGD's velocity: vectors over the tensors that are not constant.
    pub moments: Vec<Vec<f32>>,
}

impl State {
    /// The state of a new run: these parameters, and moments of zero.
    #[must_use]
    pub fn new(parameters: Vec<f32>, manifest: &Manifest, moments: usize) -> Self {
        Self { parameters, moments: vec![vec![0.0; manifest.trained_len()]; moments] }
    }

    /// A state of zeros.
    #[must_use]
    pub fn zeros(manifest: &Manifest, moments: usize) -> Self {
        Self::new(vec![0.0; manifest.len()], manifest, moments)
    }

    /// Whether its vectors have the lengths that this manifest says.
    #[must_use]
    pub fn fits(&self, manifest: &Manifest) -> bool {
        let trained = manifest.trained_len();
        self.parameters.len() == manifest.len() && self.moments.iter().all(|m| m.len() == trained)
    }

    /// The number of elements that are not constant.
    #[must_use]
    pub fn trained_len(&self) -> usize {
        self.moments.first().map_or(self.parameters.len(), Vec::len)
    }

    /// The moments, borrowed.
    #[must_use]
    pub fn moments(&self) -> Vec<&[f32]> {
        self.moments.iter().map(Vec::as_slice).collect()
    }

    /// The vectors one after the other: the parameters, then each moment.
    pub fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        std::iter::once(&self.parameters).chain(&self.moments).map(Vec::as_slice)
    }

    /// Vector `index` of [`vectors`](Self::vectors), if there is one.
    pub fn vector_mut(&mut self, index: usize) -> Option<&mut Vec<f32>> {
        match index.checked_sub(1) {
            None => Some(&mut self.parameters),
            Some(moment) => self.moments.get_mut(moment),
        }
    }

    /// Its digest (**REP-1**).
    ///
    /// # Panics
    /// If the moments differ in length, or are longer than the parameters.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let (trained, constants) = self.parameters.split_at(self.trained_len());
        digest::of(0, trained, &self.moments()).and(digest::of(trained.len(), constants, &[]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::manifest::TensorSpec;

    #[test]
    fn its_moments_end_before_the_constants() {
        let spec = |name: &str, constant| TensorSpec { constant, ..TensorSpec::with_fan_in(name, &[3], 1) };
        let manifest = Manifest::new(vec![spec("a", false), spec("b", true)]).unwrap();
        let mut state = State::new(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &manifest, 2);
        assert!(state.fits(&manifest));
        assert_eq!(state.vectors().map(<[f32]>::len).collect::<Vec<_>>(), [6, 3, 3]);
        let before = state.digest();
        state.vector_mut(2).unwrap()[1] = 1.0;
        assert_eq!(state.moments[1], [0.0, 1.0, 0.0]);
        let after = state.digest();
        assert_ne!(before, after);
        state.parameters[5] = 7.0;
        assert_ne!(state.digest(), after);
        assert!(state.vector_mut(3).is_none());
    }
}
