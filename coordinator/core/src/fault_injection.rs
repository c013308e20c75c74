//! Rules of the protocol that the simulation breaks on purpose, to see which promise's check notices.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum FaultInjection {
    /// A message of an earlier attempt counts.
    AcceptOldAttempts,
    /// A contribution counts whichever replica it was computed with.
    AcceptAnyReplica,
    /// A state counts as recovered although the journal does not confirm it.
    AdoptAnyState,
    /// A contribution may be closed before all of its chunks have come.
    CloseHalfContribution,
    /// A lost worker's nodes are not given to others.
    ForgetTakeover,
    /// A lost worker's test microbatches are not given to others.
    ForgetTestMicrobatch,
    /// An attempt that a violation has touched goes on.
    ForgiveViolation,
    /// A replica with another digest stays.
    IgnoreDrift,
    /// A returning worker keeps its state whatever its digest is.
    KeepAnyRetainedState,
    /// The accounting of samples is not reset with the state.
    KeepLedger,
}
