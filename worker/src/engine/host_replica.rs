//! A replica in the host's memory: the committed state and the second buffer (**REP-1**).

use rayon::prelude::*;
use tally_numerics::digest::{self, Digest};
use tally_numerics::update::Update;

/// Elements that a thread updates at a time.
const PIECE: usize = 1 << 15;

/// Parameters and momentum twice: those of the committed step, and those of the next step while it is computed.
///
/// After [`commit`](Self::commit) the second buffer holds the step before, until the next
/// update overwrites it: see [`previous`](Self::previous).
#[derive(Debug, Default)]
pub struct HostReplica {
    /// The second buffer still holds the step before.
    holds_previous: bool,
    parameters: Vec<f32>,
    momentum: Vec<f32>,
    next_parameters: Vec<f32>,
    next_momentum: Vec<f32>,
}

impl HostReplica {
    /// Takes over a committed state and returns its digest.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        let digest = digest::of(0, &parameters, &momentum);
        self.next_parameters.resize(parameters.len(), 0.0);
        self.next_momentum.resize(parameters.len(), 0.0);
        self.parameters = parameters;
        self.momentum = momentum;
        self.holds_previous = false;
        digest
    }

    /// The committed parameters.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// The committed momentum.
    #[must_use]
    pub fn momentum(&self) -> &[f32] {
        &self.momentum
    }

    /// Parameters and momentum of the step before, until an update overwrites them.
    #[must_use]
    pub fn previous(&self) -> Option<(&[f32], &[f32])> {
        self.holds_previous.then_some((&self.next_parameters, &self.next_momentum))
    }

    /// Updates the stretch that starts at `first` into the second buffer.
    ///
    /// # Panics
    /// If the stretch reaches past the end.
    pub fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        self.holds_previous = false;
        let stretch = first..first + gradient.len();
        update.apply_into(
            first,
            gradient,
            (&self.parameters[stretch.clone()], &self.momentum[stretch.clone()]),
            (&mut self.next_parameters[stretch.clone()], &mut self.next_momentum[stretch]),
        )
    }

    /// The same on the threads of the current pool. The digest does not depend on how the stretch is cut.
    ///
    /// # Panics
    /// As [`apply`](Self::apply).
    pub fn apply_in_parallel(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        self.holds_previous = false;
        let stretch = first..first + gradient.len();
        let from = (&self.parameters[stretch.clone()], &self.momentum[stretch.clone()]);
        let into = (&mut self.next_parameters[stretch.clone()], &mut self.next_momentum[stretch]);
        let pieces = (gradient.par_chunks(PIECE), from.0.par_chunks(PIECE), from.1.par_chunks(PIECE));
        let pieces = pieces.0.zip(pieces.1).zip(pieces.2).zip(into.0.par_chunks_mut(PIECE));
        pieces
            .zip(into.1.par_chunks_mut(PIECE))
            .enumerate()
            .map(|(index, ((((gradient, p), v), next_p), next_v))| {
                update.apply_into(first + index * PIECE, gradient, (p, v), (next_p, next_v))
            })
            .reduce(Digest::default, Digest::and)
    }

    /// Swaps the buffers.
    pub fn commit(&mut self) {
        std::mem::swap(&mut self.parameters, &mut self.next_parameters);
        std::mem::swap(&mut self.momentum, &mut self.next_momentum);
        self.holds_previous = true;
    }
}

/// Checks that the stretches of a sum, given by first element and length in order, cover a replica of `all` elements.
///
/// # Errors
/// Says where a stretch is missing or overlaps.
pub fn check_stretches(
    stretches: impl IntoIterator<Item = (usize, usize)>,
    all: usize,
) -> Result<(), String> {
    let mut end = 0;
    for (first, length) in stretches {
        if first != end {
            return Err(format!("the sum has a stretch at {first} where {end} should be next"));
        }
        end += length;
    }
    if end != all {
        return Err(format!("the sum has {end} elements, the replica {all}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_state_changes_at_the_commit_and_not_before() {
        let mut replica = HostReplica::default();
        let start = replica.load(vec![1.0, 2.0], vec![0.0, 0.0]);
        assert_eq!(start, digest::of(0, &[1.0, 2.0], &[0.0, 0.0]));
        let update = Update { learning_rate: 1.0, momentum: 0.5, clip: 1.0 };
        let next = replica.apply(update, 1, &[4.0]).and(replica.apply(update, 0, &[1.0]));
        assert_eq!(replica.parameters(), [1.0, 2.0]);
        replica.commit();
        assert_eq!((replica.parameters(), replica.momentum()), (&[0.0, -2.0][..], &[1.0, 4.0][..]));
        assert_eq!(next, digest::of(0, replica.parameters(), replica.momentum()));
        assert_eq!(replica.previous(), Some((&[1.0, 2.0][..], &[0.0, 0.0][..])));
        for apply in [HostReplica::apply, HostReplica::apply_in_parallel] {
            replica.commit();
            assert!(replica.previous().is_some());
            apply(&mut replica, update, 0, &[0.0]);
            assert_eq!(replica.previous(), None, "it is being written over");
        }
    }

    /// REP-1: threads change nothing.
    #[test]
    fn rep_1_an_update_in_parallel_is_the_same() {
        let values: Vec<f32> = (0..3 * PIECE + 7).map(|i| (i % 97) as f32 - 48.0).collect();
        let update = Update { learning_rate: 0.1, momentum: 0.5, clip: 0.3 };
        let states = [HostReplica::apply, HostReplica::apply_in_parallel].map(|apply| {
            let mut replica = HostReplica::default();
            replica.load(values.clone(), values.clone());
            let digest = apply(&mut replica, update, 5, &values[5..]).and(apply(
                &mut replica,
                update,
                0,
                &values[..5],
            ));
            replica.commit();
            assert_eq!(digest, digest::of(0, replica.parameters(), replica.momentum()));
            digest
        });
        assert_eq!(states[0], states[1]);
    }
}
