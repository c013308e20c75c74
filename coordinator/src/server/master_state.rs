//! The coordinator's own copy of the state (**REP-1**): the master of the
//! replicas' digests, the source of joins and checkpoints.
//!
//! It is kept chunk by chunk behind reference counts: a snapshot costs nothing when it is
//! taken and is never changed; the update copies only chunks that a snapshot still holds.

use std::sync::Arc;

use tally_numerics::digest::{self, Digest};
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::{CHUNK, chunk_range, chunks};

/// One chunk of the parameters, and of each moment. Moments end before the constant elements.
#[derive(Clone, Debug)]
struct Piece {
    parameters: Vec<f32>,
    moments: Vec<Vec<f32>>,
}

impl Piece {
    fn vector(&self, vector: usize) -> &[f32] {
        match vector.checked_sub(1) {
            None => &self.parameters,
            Some(moment) => &self.moments[moment],
        }
    }
}

/// An immutable committed state.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<Arc<Piece>>);

/// One chunk of one of a snapshot's vectors, sharing its memory.
#[derive(Clone, Debug)]
pub struct SnapshotChunk {
    piece: Arc<Piece>,
    vector: usize,
}

impl AsRef<[f32]> for SnapshotChunk {
    fn as_ref(&self) -> &[f32] {
        self.piece.vector(self.vector)
    }
}

impl Snapshot {
    /// The number of moments.
    #[must_use]
    pub fn moments(&self) -> usize {
        self.0.first().map_or(0, |piece| piece.moments.len())
    }

    /// The chunks of a vector: 0 for the parameters, or a moment's number from 1.
    pub fn chunks(&self, vector: usize) -> impl Iterator<Item = SnapshotChunk> + '_ {
        let pieces = self.0.iter().filter(move |piece| !piece.vector(vector).is_empty());
        pieces.map(move |piece| SnapshotChunk { piece: piece.clone(), vector })
    }

    /// The parameters, in one vector.
    #[must_use]
    pub fn parameters(&self) -> Vec<f32> {
        self.flat(0)
    }

    /// All of it.
    #[must_use]
    pub fn state(&self) -> State {
        let moments = (1..=self.moments()).map(|vector| self.flat(vector));
        State { parameters: self.flat(0), moments: moments.collect() }
    }

    fn flat(&self, vector: usize) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.0.iter().map(|piece| piece.vector(vector).len()).sum());
        for chunk in self.chunks(vector) {
            flat.extend_from_slice(chunk.as_ref());
        }
        flat
    }
}

/// The master's copy.
#[derive(Debug)]
pub struct MasterState {
    pieces: Vec<Arc<Piece>>,
    digest: Digest,
    /// The digest of the constant elements.
    constants: Digest,
}

impl MasterState {
    /// Takes over a state.
    ///
    /// # Panics
    /// If a moment is longer than the parameters.
    #[must_use]
    pub fn new(state: &State) -> Self {
        let State { parameters, moments } = state;
        let pieces = (0..chunks(parameters.len())).map(|index| {
            let chunk = |values: &Vec<f32>| values[chunk_range(values.len(), index)].to_vec();
            Arc::new(Piece { parameters: chunk(parameters), moments: moments.iter().map(chunk).collect() })
        });
        let trained = state.trained_len();
        let constants = digest::of(trained, &parameters[trained..], &[]);
        Self { pieces: pieces.collect(), digest: state.digest(), constants }
    }

    /// The digest of its state.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its state as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.pieces.clone())
    }

    /// Applies a step's update, the gradient given chunk by chunk, and returns the new digest. What is behind the
    /// gradient's end is constant.
    pub fn apply<G: AsRef<[f32]>>(&mut self, update: &Update, gradient: impl Iterator<Item = G>) -> Digest {
        let mut digest = self.constants;
        for (index, (piece, chunk)) in self.pieces.iter_mut().zip(gradient).enumerate() {
            let (piece, chunk) = (Arc::make_mut(piece), chunk.as_ref());
            let parameters = &mut piece.parameters[..chunk.len()];
            let mut moments: Vec<&mut [f32]> = piece.moments.iter_mut().map(Vec::as_mut_slice).collect();
            digest = digest.and(update.apply(index * CHUNK, chunk, parameters, &mut moments));
        }
        self.digest = digest;
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_never_changes() {
        let n = CHUNK + 5;
        let state = State { parameters: vec![1.0; n], moments: vec![vec![0.0; n]] };
        let mut master = MasterState::new(&state);
        let before = master.snapshot();
        let gradient = [vec![2.0; CHUNK], vec![2.0; 5]];
        let digest = master.apply(&Update::sgd(0.5, 0.9, 1.0), gradient.iter());
        assert_eq!(before.state(), state);
        let after = master.snapshot().state();
        assert_eq!(after, State { parameters: vec![0.0; n], moments: vec![vec![2.0; n]] });
        assert_eq!((digest, digest), (after.digest(), master.digest()));
    }

    #[test]
    fn what_is_behind_the_gradient_is_constant_and_counts_in_the_digest() {
        let n = 2 * CHUNK + 7;
        for trained in [CHUNK - 3, CHUNK, CHUNK + 5] {
            let state = State { parameters: vec![1.0; n], moments: vec![vec![0.0; trained]] };
            let mut master = MasterState::new(&state);
            assert_eq!(master.snapshot().state(), state);
            assert_eq!(master.snapshot().chunks(1).count(), chunks(trained));
            for step in 1..3 {
                let gradient = vec![2.0; trained];
                let digest = master.apply(&Update::sgd(0.5, 0.9, 1.0), gradient.chunks(CHUNK));
                let after = master.snapshot().state();
                assert_eq!(digest, after.digest(), "step {step}");
                assert_eq!(after.parameters[trained..], vec![1.0; n - trained]);
                assert!(after.parameters[..trained].iter().all(|&p| p < 1.0));
            }
        }
    }
}
