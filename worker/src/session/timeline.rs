//! The spans of a worker's compute thread and of its sender, reported with each commit.
//!
//! A span costs two readings of the clock and an entry in a list; the sender's list is behind a lock, which is taken
//! only to add an entry. The lists are bounded: the shortest spans are merged or left out first, so that a step of
//! thousands of chunks fits as well.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tally_proto::span::{Clock, MAX_SPANS, Span, SpanKind};
use tally_proto::v1;

/// The most spans of one list.
const MAX_TRACK: usize = MAX_SPANS / 2;
/// Shorter waits than this are left out, and shorter pauses are closed.
const FINEST: Duration = Duration::from_micros(200);
/// When even this resolution does not shorten a list, further spans are left out.
const COARSEST: Duration = Duration::from_secs(60);

/// One activity, from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    kind: SpanKind,
    leaves: u32,
    from: Instant,
    to: Instant,
}

impl Stretch {
    /// Whether it may be merged with an equal activity right before it.
    fn merges(&self) -> bool {
        matches!(self.kind, SpanKind::Send | SpanKind::Wait | SpanKind::Apply)
    }
}

/// Activities, one after the other.
#[derive(Debug)]
struct Track {
    stretches: Vec<Stretch>,
    /// Shorter waits are left out, and shorter pauses are closed.
    finest: Duration,
}

impl Default for Track {
    fn default() -> Self {
        Self { stretches: Vec::new(), finest: FINEST }
    }
}

impl Track {
    fn add(&mut self, stretch: Stretch) {
        while self.stretches.len() >= MAX_TRACK && self.finest < COARSEST {
            self.finest *= 2;
            for stretch in std::mem::take(&mut self.stretches) {
                self.put(stretch);
            }
        }
        self.put(stretch);
    }

    fn put(&mut self, stretch: Stretch) {
        if stretch.kind == SpanKind::Wait && stretch.to - stretch.from < self.finest {
            return;
        }
        let right_before = |last: &&mut Stretch| {
            let pause = stretch.from.saturating_duration_since(last.to);
            last.kind == stretch.kind && stretch.merges() && pause <= self.finest
        };
        if let Some(last) = self.stretches.last_mut().filter(right_before) {
            last.to = stretch.to;
        } else if self.stretches.len() < MAX_TRACK {
            self.stretches.push(stretch);
        }
    }

    fn drain(&mut self) -> Vec<Stretch> {
        std::mem::take(self).stretches
    }
}

/// The sender's part of a timeline.
#[derive(Clone, Debug, Default)]
pub struct SendTrack(Option<Arc<Mutex<Track>>>);

impl SendTrack {
    /// Records that something was sent, from then until now.
    pub fn record(&self, from: Instant) {
        if let Some(track) = &self.0 {
            let stretch = Stretch { kind: SpanKind::Send, leaves: 0, from, to: Instant::now() };
            track.lock().unwrap_or_else(PoisonError::into_inner).add(stretch);
        }
    }
}

/// A session's timeline, kept by the compute thread. The default one records nothing.
#[derive(Debug, Default)]
pub struct Timeline {
    clock: Option<Clock>,
    track: Track,
    sends: SendTrack,
}

impl Timeline {
    /// A timeline by this clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock: Some(clock), track: Track::default(), sends: SendTrack(Some(Arc::default())) }
    }

    /// The sender's part of it.
    #[must_use]
    pub fn sends(&self) -> SendTrack {
        self.sends.clone()
    }

    /// Records an activity, from then until now.
    pub fn record(&mut self, kind: SpanKind, leaves: u32, from: Instant) {
        if self.clock.is_some() {
            self.track.add(Stretch { kind, leaves, from, to: Instant::now() });
        }
    }

    /// The spans recorded since the last call.
    #[must_use]
    pub fn drain_spans(&mut self) -> Vec<v1::Span> {
        let Some(clock) = self.clock else { return Vec::new() };
        let mut stretches = self.track.drain();
        if let Some(sends) = &self.sends.0 {
            stretches.extend(sends.lock().unwrap_or_else(PoisonError::into_inner).drain());
        }
        let span = |s: Stretch| Span {
            kind: s.kind,
            leaves: s.leaves,
            start: clock.at(s.from),
            end: clock.at(s.to),
        };
        stretches.into_iter().map(|stretch| span(stretch).to_message()).collect()
    }
}

#[cfg(test)]
mod tests {
    use tally_proto::span::spans;

    use super::*;

    fn track(list: &[(SpanKind, u64, u64)]) -> Vec<(SpanKind, u64)> {
        let zero = Instant::now();
        let at = |micros| zero + Duration::from_micros(micros);
        let mut track = Track::default();
        for &(kind, from, to) in list {
            track.add(Stretch { kind, leaves: 1, from: at(from), to: at(to) });
        }
        let length = |s: Stretch| (s.kind, (s.to - s.from).as_micros() as u64);
        track.drain().into_iter().map(length).collect()
    }

    #[test]
    fn short_pauses_are_closed() {
        use SpanKind::{Apply, Compute, Wait};
        let list = [
            (Compute, 0, 900),
            (Compute, 900, 1800),
            (Wait, 1800, 5000),
            (Apply, 5000, 5300),
            (Wait, 5300, 5400),
            (Apply, 5400, 5700),
            (Wait, 5700, 6700),
            (Apply, 6700, 6710),
        ];
        let reported =
            [(Compute, 900), (Compute, 900), (Wait, 3200), (Apply, 700), (Wait, 1000), (Apply, 10)];
        assert_eq!(track(&list), reported);
    }

    #[test]
    fn a_step_of_thousands_of_chunks_fits() {
        let chunks = (0..5000u64).flat_map(|i| {
            let from = 10_000 * i;
            [(SpanKind::Wait, from, from + 9000), (SpanKind::Apply, from + 9000, from + 10_000)]
        });
        let list: Vec<_> = std::iter::once((SpanKind::Compute, 0, 0)).chain(chunks).collect();
        let reported = track(&list);
        assert!(reported.len() <= MAX_TRACK, "{}", reported.len());
        assert_eq!(reported[0].0, SpanKind::Compute);
        // Computing is never merged; spans that do not fit are left out.
        let many = vec![(SpanKind::Compute, 1, 2); 3 * MAX_TRACK];
        assert_eq!(track(&many).len(), MAX_TRACK);
    }

    #[test]
    fn spans_are_in_order_and_reported_once() {
        let mut timeline = Timeline::new(Clock::start());
        let sends = timeline.sends();
        for _ in 0..3 {
            let from = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            timeline.record(SpanKind::Compute, 2, from);
            sends.record(from);
        }
        let reported = timeline.drain_spans();
        assert_eq!(spans(&reported).map(|spans| spans.len()), Ok(reported.len()));
        assert!(reported.len() >= 4, "three of computing and at least one of sending: {reported:?}");
        assert!(timeline.drain_spans().is_empty());
        let mut unwanted = Timeline::default();
        unwanted.record(SpanKind::Compute, 1, Instant::now());
        unwanted.sends().record(Instant::now());
        assert!(unwanted.drain_spans().is_empty());
    }
}
