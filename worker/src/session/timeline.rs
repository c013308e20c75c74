//! What a worker does when: the spans of its compute thread and of its sender, told with each
//! commit.
//!
//! A span costs two looks at the clock and a place in a list; the sender's wait behind a lock that
//! is held as long as that takes. The lists are bounded: what is too short to matter is merged or
//! left out, the shortest first, so that a step of thousands of chunks fits as well.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tally_proto::span::{Clock, MAX_SPANS, Span, SpanKind};
use tally_proto::v1;

/// Spans of one list that are told of at once.
const MOST: usize = MAX_SPANS / 2;
/// Shorter waits than this are not told of, and shorter pauses are not seen.
const FINEST: Duration = Duration::from_micros(200);
/// When even this does not shorten a list, what comes more is left out.
const COARSEST: Duration = Duration::from_secs(60);

/// Something that was done.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    kind: SpanKind,
    leaves: u32,
    from: Instant,
    to: Instant,
}

impl Stretch {
    /// Whether it is told of as one with others that come right before it.
    fn merges(&self) -> bool {
        matches!(self.kind, SpanKind::Send | SpanKind::Wait | SpanKind::Apply)
    }
}

/// What was done, one thing after the other.
#[derive(Debug)]
struct Track {
    stretches: Vec<Stretch>,
    /// What is shorter is not seen.
    finest: Duration,
}

impl Default for Track {
    fn default() -> Self {
        Self { stretches: Vec::new(), finest: FINEST }
    }
}

impl Track {
    fn add(&mut self, stretch: Stretch) {
        while self.stretches.len() >= MOST && self.finest < COARSEST {
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
        } else if self.stretches.len() < MOST {
            self.stretches.push(stretch);
        }
    }

    fn drain(&mut self) -> Vec<Stretch> {
        std::mem::take(self).stretches
    }
}

/// The sender's part of a timeline.
#[derive(Clone, Debug, Default)]
pub struct Sends(Option<Arc<Mutex<Track>>>);

impl Sends {
    /// Something was sent from then until now.
    pub fn sent(&self, from: Instant) {
        if let Some(track) = &self.0 {
            let stretch = Stretch { kind: SpanKind::Send, leaves: 0, from, to: Instant::now() };
            track.lock().unwrap_or_else(PoisonError::into_inner).add(stretch);
        }
    }
}

/// A session's timeline, kept by the compute thread; nothing is kept unless it is wanted.
#[derive(Debug, Default)]
pub struct Timeline {
    clock: Option<Clock>,
    track: Track,
    sends: Sends,
}

impl Timeline {
    /// A timeline by this clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock: Some(clock), track: Track::default(), sends: Sends(Some(Arc::default())) }
    }

    /// The sender's part of it.
    #[must_use]
    pub fn sends(&self) -> Sends {
        self.sends.clone()
    }

    /// This was done from then until now.
    pub fn did(&mut self, kind: SpanKind, leaves: u32, from: Instant) {
        if self.clock.is_some() {
            self.track.add(Stretch { kind, leaves, from, to: Instant::now() });
        }
    }

    /// What was done since the last call.
    #[must_use]
    pub fn told(&mut self) -> Vec<v1::Span> {
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
    fn short_pauses_are_not_seen() {
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
        let told = [(Compute, 900), (Compute, 900), (Wait, 3200), (Apply, 700), (Wait, 1000), (Apply, 10)];
        assert_eq!(track(&list), told);
    }

    #[test]
    fn a_step_of_thousands_of_chunks_fits() {
        let chunks = (0..5000u64).flat_map(|i| {
            let from = 10_000 * i;
            [(SpanKind::Wait, from, from + 9000), (SpanKind::Apply, from + 9000, from + 10_000)]
        });
        let list: Vec<_> = std::iter::once((SpanKind::Compute, 0, 0)).chain(chunks).collect();
        let told = track(&list);
        assert!(told.len() <= MOST, "{}", told.len());
        assert_eq!(told[0].0, SpanKind::Compute);
        // Computing is never merged; what does not fit is left out.
        let many = vec![(SpanKind::Compute, 1, 2); 3 * MOST];
        assert_eq!(track(&many).len(), MOST);
    }

    #[test]
    fn what_is_told_is_in_order_and_told_once() {
        let mut timeline = Timeline::new(Clock::start());
        let sends = timeline.sends();
        for _ in 0..3 {
            let from = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            timeline.did(SpanKind::Compute, 2, from);
            sends.sent(from);
        }
        let told = timeline.told();
        assert_eq!(spans(&told).map(|spans| spans.len()), Ok(told.len()));
        assert!(told.len() >= 4, "three of computing and at least one of sending: {told:?}");
        assert!(timeline.told().is_empty());
        let mut unwanted = Timeline::default();
        unwanted.did(SpanKind::Compute, 1, Instant::now());
        unwanted.sends().sent(Instant::now());
        assert!(unwanted.told().is_empty());
    }
}
