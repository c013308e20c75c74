//! A replica in the host's memory: the committed state and the second buffer (**REP-1**).

use tally_numerics::digest::Digest;
use tally_numerics::state::State;
use tally_numerics::update::Update;

/// Elements that a thread updates at a time.
const PIECE: usize = 1 << 15;

/// A state twice: that of the committed step, and that of the next step while it is computed.
///
/// After [`commit`](Self::commit) the second buffer holds the step before, until the next
/// update overwrites it: see [`previous`](Self::previous).
#[derive(Debug, Default)]
pub struct HostReplica {
    /// The second buffer still holds the step before.
    holds_previous: bool,
    committed: State,
    next: State,
}

impl HostReplica {
    /// Takes over a committed state and returns its digest.
    pub fn load(&mut self, state: State) -> Digest {
        let digest = state.digest();
        // Constant tensors are never written: both buffers have them from here on.
        self.next = state.clone();
        self.committed = state;
        self.holds_previous = false;
        digest
    }

    /// The committed state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.committed
    }

    /// The committed parameters.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        &self.committed.parameters
    }

    /// The state of the step before, until an update overwrites it.
    #[must_use]
    pub fn previous(&self) -> Option<&State> {
        self.holds_previous.then_some(&self.next)
    }

    /// Updates the stretch that starts at `first` into the second buffer.
    ///
    /// # Panics
    /// If the stretch reaches past the end, or the update is one for other moments.
    pub fn apply(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        let stretch = self.stretch(first, gradient);
        stretch.apply(update)
    }

    /// The same on the threads of the current pool. The digest does not depend on how the stretch is cut.
    ///
    /// # Panics
    /// As [`apply`](Self::apply).
    pub fn apply_in_parallel(&mut self, update: &Update, first: usize, gradient: &[f32]) -> Digest {
        let stretch = self.stretch(first, gradient);
        stretch.apply_in_parallel(update)
    }

    fn stretch<'a>(&'a mut self, first: usize, gradient: &'a [f32]) -> Stretch<'a> {
        self.holds_previous = false;
        let range = first..first + gradient.len();
        let State { parameters, moments } = &self.committed;
        let next = &mut self.next;
        Stretch {
            first,
            gradient,
            from: (&parameters[range.clone()], moments.iter().map(|m| &m[range.clone()]).collect()),
            into: (
                &mut next.parameters[range.clone()],
                next.moments.iter_mut().map(|m| &mut m[range.clone()]).collect(),
            ),
        }
    }

    /// Swaps the buffers.
    pub fn commit(&mut self) {
        std::mem::swap(&mut self.committed, &mut self.next);
        self.holds_previous = true;
    }
}

/// A stretch of a replica that is to be updated.
struct Stretch<'a> {
    first: usize,
    gradient: &'a [f32],
    /// The committed parameters and moments.
    from: (&'a [f32], Vec<&'a [f32]>),
    /// The next ones.
    into: (&'a mut [f32], Vec<&'a mut [f32]>),
}

impl Stretch<'_> {
    fn apply(self, update: &Update) -> Digest {
        let Self { first, gradient, from, mut into } = self;
        update.apply_into(first, gradient, (from.0, &from.1), (into.0, &mut into.1))
    }

    fn apply_in_parallel(self, update: &Update) -> Digest {
        if self.gradient.len() <= PIECE {
            return self.apply(update);
        }
        let half = (self.gradient.len() / 2).next_multiple_of(PIECE);
        let Self { first, gradient, from, into } = self;
        let (gradient, gradient_after) = gradient.split_at(half);
        let (p, p_after) = from.0.split_at(half);
        let (next_p, next_p_after) = into.0.split_at_mut(half);
        let (m, m_after) = from.1.into_iter().map(|moment| moment.split_at(half)).unzip();
        let (next_m, next_m_after) = into.1.into_iter().map(|moment| moment.split_at_mut(half)).unzip();
        let before = Self { first, gradient, from: (p, m), into: (next_p, next_m) };
        let after = Stretch {
            first: first + half,
            gradient: gradient_after,
            from: (p_after, m_after),
            into: (next_p_after, next_m_after),
        };
        let parts = rayon::join(|| before.apply_in_parallel(update), || after.apply_in_parallel(update));
        parts.0.and(parts.1)
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
    use tally_numerics::update::rule::{Lion, Rule};

    #[test]
    fn the_committed_state_changes_at_the_commit_and_not_before() {
        let mut replica = HostReplica::default();
        // The third parameter is constant.
        let start = State { parameters: vec![1.0, 2.0, 3.0], moments: vec![vec![0.0, 0.0]] };
        assert_eq!(replica.load(start.clone()), start.digest());
        let update = Update::sgd(1.0, 0.5, 1.0);
        let constant = tally_numerics::digest::of(2, &[3.0], &[]);
        let next = replica.apply(&update, 1, &[4.0]).and(replica.apply(&update, 0, &[1.0])).and(constant);
        assert_eq!(replica.parameters(), [1.0, 2.0, 3.0]);
        replica.commit();
        assert_eq!(
            *replica.state(),
            State { parameters: vec![0.0, -2.0, 3.0], moments: vec![vec![1.0, 4.0]] }
        );
        assert_eq!(next, replica.state().digest());
        assert_eq!(replica.previous(), Some(&start));
        for apply in [HostReplica::apply, HostReplica::apply_in_parallel] {
            replica.commit();
            assert!(replica.previous().is_some());
            apply(&mut replica, &update, 0, &[0.0]);
            assert_eq!(replica.previous(), None, "it is being written over");
        }
    }

    /// REP-1: threads change nothing.
    #[test]
    fn rep_1_an_update_in_parallel_is_the_same() {
        let values: Vec<f32> = (0..3 * PIECE + 7).map(|i| (i % 97) as f32 - 48.0).collect();
        let lion = Lion {
            learning_rate: 0.01,
            beta1: 0.9,
            gradient1: 0.1,
            beta2: 0.99,
            gradient2: 0.01,
            keep: 0.999,
        };
        let update = Update::of(Rule::Lion(lion), 0.3);
        let states = [HostReplica::apply, HostReplica::apply_in_parallel].map(|apply| {
            let mut replica = HostReplica::default();
            replica.load(State { parameters: values.clone(), moments: vec![values.clone()] });
            let digest = apply(&mut replica, &update, 5, &values[5..]).and(apply(
                &mut replica,
                &update,
                0,
                &values[..5],
            ));
            replica.commit();
            assert_eq!(digest, replica.state().digest());
            digest
        });
        assert_eq!(states[0], states[1]);
    }
}
