//! The coordinator's own copy of parameters and momentum (**REP-1**): the master of the
//! replicas' digests, the source of joins and checkpoints.
//!
//! It is kept chunk by chunk behind reference counts: a snapshot costs nothing when it is
//! taken and is never changed; the update copies only chunks that a snapshot still holds.

use std::sync::Arc;

use tally_numerics::digest::{self, Digest};
use tally_numerics::update::Update;
use tally_numerics::{CHUNK, chunk_range, chunks};

/// Parameters and momentum of one chunk.
#[derive(Clone, Debug)]
struct Piece {
    parameters: Vec<f32>,
    momentum: Vec<f32>,
}

/// An immutable committed state.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<Arc<Piece>>);

/// One chunk of a snapshot's parameters or momentum, sharing its memory.
#[derive(Clone, Debug)]
pub struct SnapshotChunk {
    piece: Arc<Piece>,
    momentum: bool,
}

impl AsRef<[f32]> for SnapshotChunk {
    fn as_ref(&self) -> &[f32] {
        if self.momentum { &self.piece.momentum } else { &self.piece.parameters }
    }
}

impl Snapshot {
    /// The chunks of the parameters, or of the momentum.
    pub fn chunks(&self, momentum: bool) -> impl Iterator<Item = SnapshotChunk> + '_ {
        self.0.iter().map(move |piece| SnapshotChunk { piece: piece.clone(), momentum })
    }

    /// The parameters, or the momentum, in one vector.
    #[must_use]
    pub fn flat(&self, momentum: bool) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.0.len() * CHUNK);
        for chunk in self.chunks(momentum) {
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
    /// The digest of the constant elements, once an update has told how many are trained.
    constants: Option<Digest>,
}

impl MasterState {
    /// Takes over a state.
    ///
    /// # Panics
    /// If parameters and momentum differ in length.
    #[must_use]
    pub fn new(parameters: &[f32], momentum: &[f32]) -> Self {
        let digest = digest::of(0, parameters, momentum);
        let pieces = (0..chunks(parameters.len())).map(|index| {
            let range = chunk_range(parameters.len(), index);
            let (p, v) = (&parameters[range.clone()], &momentum[range]);
            Arc::new(Piece { parameters: p.to_vec(), momentum: v.to_vec() })
        });
        Self { pieces: pieces.collect(), digest, constants: None }
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
    pub fn apply<G: AsRef<[f32]>>(&mut self, update: Update, gradient: impl Iterator<Item = G>) -> Digest {
        let mut digest = Digest::default();
        let mut trained = 0;
        for (index, (piece, chunk)) in self.pieces.iter_mut().zip(gradient).enumerate() {
            let (piece, chunk) = (Arc::make_mut(piece), chunk.as_ref());
            let (parameters, momentum) =
                (&mut piece.parameters[..chunk.len()], &mut piece.momentum[..chunk.len()]);
            digest = digest.and(update.apply(index * CHUNK, chunk, parameters, momentum));
            trained += chunk.len();
        }
        let pieces = &self.pieces;
        let constants = *self.constants.get_or_insert_with(|| rest(pieces, trained));
        self.digest = digest.and(constants);
        self.digest
    }
}

/// The digest of the elements from `first` on.
fn rest(pieces: &[Arc<Piece>], first: usize) -> Digest {
    pieces.iter().enumerate().fold(Digest::default(), |digest, (index, piece)| {
        let from = first.saturating_sub(index * CHUNK).min(piece.parameters.len());
        digest.and(digest::of(index * CHUNK + from, &piece.parameters[from..], &piece.momentum[from..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_never_changes() {
        let n = CHUNK + 5;
        let mut master = MasterState::new(&vec![1.0; n], &vec![0.0; n]);
        let before = master.snapshot();
        let update = Update { learning_rate: 0.5, momentum: 0.9, clip: 1.0 };
        let gradient = [vec![2.0; CHUNK], vec![2.0; 5]];
        let digest = master.apply(update, gradient.iter());
        assert_eq!(before.flat(false), vec![1.0; n]);
        let after = master.snapshot();
        assert_eq!((after.flat(false), after.flat(true)), (vec![0.0; n], vec![2.0; n]));
        assert_eq!(digest, digest::of(0, &after.flat(false), &after.flat(true)));
        assert_eq!(digest, master.digest());
    }

    #[test]
    fn what_is_behind_the_gradient_is_constant_and_counts_in_the_digest() {
        let n = 2 * CHUNK + 7;
        for trained in [CHUNK - 3, CHUNK, CHUNK + 5] {
            let mut master = MasterState::new(&vec![1.0; n], &vec![0.0; n]);
            let update = Update { learning_rate: 0.5, momentum: 0.9, clip: 1.0 };
            for step in 1..3 {
                let gradient = vec![2.0; trained];
                let digest = master.apply(update, gradient.chunks(CHUNK));
                let after = master.snapshot();
                assert_eq!(digest, digest::of(0, &after.flat(false), &after.flat(true)), "step {step}");
                assert_eq!(after.flat(false)[trained..], vec![1.0; n - trained]);
                assert!(after.flat(false)[..trained].iter().all(|&p| p < 1.0));
            }
        }
    }
}
