//! Rules of the protocol that the simulation breaks on purpose, to see which promise's check notices.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum FaultInjection {
    /// An audit has workers send again what nobody has any more.
    AuditLostSums,
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
    /// The chunks that an owner cannot finish are not taken back.
    ForgetTakeBack,
    /// A sharded attempt goes on although a header was wrong whose chunks owners may have.
    ForgiveHeader,
    /// An attempt that a violation has touched goes on.
    ForgiveViolation,
    /// A replica with another digest stays.
    IgnoreDrift,
    /// A replica that lacks a sum is not sent it.
    IgnoreNeed,
    /// A returning worker keeps its state whatever its digest is.
    KeepAnyRetainedState,
    /// The accounting of samples is not reset with the state.
    KeepLedger,
    /// A chunk that is taken back gets a second version, although devices compute different bits.
    MixVersions,
    /// The nodes that a lost worker had closed count as delivered.
    TrustTrailers,
    /// Credits go by the numbers of chunks, and not by what the coordinator adds up.
    CreditByIndex,
    /// Whoever's replica differs is sent away, whichever sums it was sent.
    BlameReceiver,
}
