//! What was done when, by workers and by the coordinator itself: on one clock, for pages, metrics
//! and the trace.

use super::*;
use crate::shell::checkpointer::Done;
use crate::timeline::Span;
use crate::timeline::trace::{Args, Track};

/// An attempt at a step, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    begun: f64,
    whole: f64,
    applied: f64,
}

impl Driver {
    /// Seconds since 1970, by the clock that all times are told by.
    pub(super) fn now(&self) -> f64 {
        self.parts.feed.clock().unix()
    }

    // ---- Workers ----

    /// A worker takes part.
    pub(super) fn time_joined(&mut self, session: Session, name: &str, device: &str) {
        self.parts.series.joined(session, name, device, Instant::now());
        let now = self.now();
        if let Some(trace) = &mut self.parts.trace {
            trace.joined(session, name, now);
        }
        self.ask_clocks();
    }

    /// Asks the workers whose clock it is time to ask.
    pub(super) fn ask_clocks(&mut self) {
        let now = self.now();
        let is_due = |peer: &Peer| peer.time.as_ref().is_some_and(|time| time.clock.is_due(now));
        let due = self.peers.iter().filter(|(_, peer)| is_due(peer));
        for session in due.map(|(&session, _)| session).collect::<Vec<_>>() {
            // The moment of each question counts, not of the first.
            let now = self.now();
            let time = self.peers.get_mut(&session).and_then(|peer| peer.time.as_mut());
            if let Some(number) = time.map(|time| time.clock.ask(now)) {
                let question = v1::ClockQuestion { number };
                self.tell(session, 0, 0, coordinator_message::Body::Clock(question));
            }
        }
    }

    /// A worker has answered.
    pub(super) fn clock(&mut self, session: Session, number: u64, read: (f64, f64), arrived: Instant) {
        let arrived = self.parts.feed.clock().at(arrived);
        let Some(time) = self.peers.get_mut(&session).and_then(|peer| peer.time.as_mut()) else { return };
        time.clock.answered(number, read.0, read.1, arrived);
        if let Some(offset) = time.clock.offset(arrived) {
            self.parts.series.clock(session, offset);
        }
    }

    /// A worker has told what it did; before its clock is known, that says nothing.
    pub(super) fn spans(&mut self, session: Session, step: u64, spans: &[Span], arrived: Instant) {
        let arrived = self.parts.feed.clock().at(arrived);
        let time = self.peers.get_mut(&session).and_then(|peer| peer.time.as_mut());
        if let Some(lane) = time.and_then(|time| time.lane(session, step, spans, arrived)) {
            self.timeline(&lane);
        }
    }

    /// What a worker did in a step, for whoever shows it.
    fn timeline(&mut self, lane: &Lane) {
        self.parts.series.lane(lane);
        if let Some(trace) = &mut self.parts.trace {
            trace.lane(lane);
        }
        let shown = lane.shown();
        self.parts.feed.change(|view| view.lane(lane.session, shown));
    }

    /// The cluster has changed.
    pub(super) fn time_note(&mut self, note: &ClusterEvent) {
        let (session, name, what) = match note {
            ClusterEvent::Lost { session, reason, .. } => {
                self.parts.series.gone(*session, Instant::now());
                (Some(*session), "gone", reason.clone())
            }
            ClusterEvent::Late { session, leaves, .. } => {
                self.parts.series.late(*session);
                (Some(*session), "late", format!("{leaves} micro-shards are given to others too"))
            }
            ClusterEvent::TakenOver { leaves, by, .. } => {
                by.iter().for_each(|&(session, leaves)| self.parts.series.takes_over(session, leaves));
                (None, "takeover", format!("{leaves} micro-shards, by {} workers", by.len()))
            }
            ClusterEvent::Ready { .. } | ClusterEvent::Adopted { .. } | ClusterEvent::Audited { .. } => return,
        };
        let (now, step) = (self.now(), self.parts.core.committed().0);
        if let Some(trace) = &mut self.parts.trace {
            trace.moment(session, name, now, Args { what: Some(what), ..Args::step(step) });
        }
    }

    // ---- The coordinator ----

    /// An attempt begins.
    pub(super) fn time_begin(&mut self) {
        self.moments.begun = self.now();
    }

    /// The sum of an attempt is whole.
    pub(super) fn time_whole(&mut self) {
        self.moments.whole = self.now();
    }

    /// The referee has applied its update.
    pub(super) fn time_applied(&mut self) {
        self.moments.applied = self.now();
    }

    /// A step is committed.
    pub(super) fn time_commit(&mut self, step: u64, attempt: u32) {
        let (now, Moments { begun, whole, applied }) = (self.now(), self.moments);
        let Some(trace) = &mut self.parts.trace else { return };
        let args = Args { attempt: Some(attempt), ..Args::step(step) };
        // What contains the others comes first.
        for (name, start, end) in [
            ("step", begun, now),
            ("reduce", begun, whole),
            ("update", whole, applied),
            ("commit", applied, now),
        ] {
            trace.span(Track::Steps, name, start, end, args.clone());
        }
    }

    /// An attempt is void.
    pub(super) fn time_abort(&mut self, step: u64, attempt: u32, reason: &str) {
        let (now, begun) = (self.now(), self.moments.begun);
        if let Some(trace) = &mut self.parts.trace {
            let args = Args { attempt: Some(attempt), what: Some(reason.into()), ..Args::step(step) };
            trace.span(Track::Steps, "void attempt", begun, now, args);
        }
    }

    /// A test pass is done, which took so many seconds.
    pub(super) fn time_tested(&mut self, step: u64, seconds: f64) {
        let now = self.now();
        if let Some(trace) = &mut self.parts.trace {
            trace.span(Track::Steps, "test pass", now - seconds, now, Args::step(step));
        }
    }

    /// A checkpoint is written, or could not be.
    pub(super) fn time_checkpoint(&mut self, done: &Done) {
        let clock = self.parts.feed.clock();
        if let Some(trace) = &mut self.parts.trace {
            let args = Args { what: done.result.as_ref().err().cloned(), ..Args::step(done.step) };
            trace.span(Track::Checkpoints, "checkpoint", clock.at(done.from), clock.at(done.to), args);
        }
    }
}
