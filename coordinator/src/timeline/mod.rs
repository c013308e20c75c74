//! The spans of all workers on one clock, the coordinator's.
//!
//! Workers report spans by their own clocks, which are compared with the coordinator's over the control stream
//! ([`clock`]). Moved to the coordinator's clock, the spans become lanes, one for each worker and step, which
//! observers get. Nothing here does I/O.

pub mod clock;

pub use tally_proto::span::{Span, SpanKind};

use clock::{Offset, WorkerClock};
use tally_core::cluster::Session;

/// The spans of a worker between two reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// The worker's session.
    pub session: Session,
    /// The step that it had committed then.
    pub step: u64,
    /// The bound on the error of the times, in seconds.
    pub error: f64,
    /// In the order of their starts, in seconds since 1970 by the coordinator's clock.
    pub spans: Vec<Span>,
}

/// A worker's clock, and the end of its lanes so far.
#[derive(Debug)]
pub struct WorkerTime {
    /// Its clock.
    pub clock: WorkerClock,
    /// When its sending, and what else it does, last ended.
    sent: f64,
    done: f64,
}

impl WorkerTime {
    /// Of a worker that has just come, at `now`: nothing that it did was before.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self { clock: WorkerClock::new(now), sent: now, done: now }
    }

    /// The spans that it reported at `now`, on the coordinator's clock. Spans are cut so that they come after the
    /// earlier ones, are not in the future, and do not overlap, whatever a worker reports (**TRUST-1**). `None` while
    /// its clock is unknown.
    pub fn lane(&mut self, session: Session, step: u64, spans: &[Span], now: f64) -> Option<Lane> {
        let Offset { seconds, error, .. } = self.clock.offset(now)?;
        let mut moved = Vec::with_capacity(spans.len());
        for span in spans {
            let last = if span.kind == SpanKind::Send { &mut self.sent } else { &mut self.done };
            let start = (span.start - seconds).max(*last);
            let end = (span.end - seconds).min(now);
            if start < end {
                *last = end;
                moved.push(Span { start, end, ..*span });
            }
        }
        moved.sort_by(|a, b| a.start.total_cmp(&b.start));
        Some(Lane { session, step, error, spans: moved })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn known(now: f64, ahead: f64) -> WorkerTime {
        let mut time = WorkerTime::new(now);
        let number = time.clock.ask(now);
        time.clock.answered(number, now + ahead, now + ahead, now);
        time
    }

    fn span(kind: SpanKind, start: f64, end: f64) -> Span {
        Span { kind, leaves: 1, start, end }
    }

    #[test]
    fn a_lane_is_on_the_coordinators_clock() {
        use SpanKind::{Compute, Send, Wait};
        let mut time = known(100.0, 7.0);
        let told = [span(Wait, 107.0, 108.0), span(Compute, 108.0, 110.0), span(Send, 107.5, 109.0)];
        let lane = time.lane(3, 9, &told, 104.0).unwrap();
        let seen: Vec<_> = lane.spans.iter().map(|s| (s.kind, s.start, s.end)).collect();
        assert_eq!(seen, [(Wait, 100.0, 101.0), (Send, 100.5, 102.0), (Compute, 101.0, 103.0)]);
        assert_eq!((lane.session, lane.step), (3, 9));
        assert!(WorkerTime::new(1.0).lane(3, 9, &told, 104.0).is_none());
    }

    #[test]
    fn trust_1_whatever_a_worker_tells_its_lanes_do_not_overlap_nor_lie_in_the_future() {
        use SpanKind::Compute;
        let mut time = known(100.0, 0.0);
        let times = |lane: Option<Lane>| -> Vec<(f64, f64)> {
            lane.unwrap().spans.iter().map(|s| (s.start, s.end)).collect()
        };
        let long_ago = [span(Compute, -1e11, 1.0), span(Compute, 2.0, 101.0)];
        assert_eq!(times(time.lane(1, 1, &long_ago, 102.0)), [(100.0, 101.0)]);
        let again = [span(Compute, 100.0, 100.5), span(Compute, 100.5, 1e11)];
        assert_eq!(times(time.lane(1, 2, &again, 103.0)), [(101.0, 103.0)]);
        assert_eq!(times(time.lane(1, 3, &again, 103.0)), []);
    }
}
