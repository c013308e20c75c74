//! The newest steps of each worker, on the coordinator's clock.

use std::collections::VecDeque;

use serde::Serialize;
use tally_coordinator::timeline;

/// Lanes that are kept: some steps of a small cluster, the newest few of a large one.
const MOST: usize = 2048;
/// Seconds that they reach back.
const REACH: f64 = 20.0;

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Span {
    /// What was done.
    pub kind: &'static str,
    /// From, in seconds since 1970.
    pub start: f64,
    /// To.
    pub end: f64,
}

/// What a worker did in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lane {
    /// Its session, hexadecimal.
    pub session: String,
    /// The step.
    pub step: u64,
    /// In the order of time.
    pub spans: Vec<Span>,
}

impl From<&timeline::Lane> for Lane {
    fn from(lane: &timeline::Lane) -> Self {
        let span = |s: &timeline::Span| Span { kind: s.kind.name(), start: s.start, end: s.end };
        let spans = lane.spans.iter().map(span).collect();
        Self { session: format!("{:x}", lane.session), step: lane.step, spans }
    }
}

/// The newest lanes.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: VecDeque<Lane>,
    /// How many there ever were.
    count: u64,
}

impl Lanes {
    /// Appends a lane, and forgets lanes that are much older.
    pub fn push(&mut self, lane: Lane) {
        let end = |lane: &Lane| lane.spans.last().map_or(0.0, |span| span.end);
        let oldest = end(&lane) - REACH;
        self.lanes.push_back(lane);
        self.count += 1;
        while self.lanes.len() > MOST || self.lanes.front().is_some_and(|first| end(first) < oldest) {
            self.lanes.pop_front();
        }
    }

    /// How many there ever were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The lanes after the first `seen`, as far as they are kept.
    #[must_use]
    pub fn since(&self, seen: u64) -> Vec<Lane> {
        let new = usize::try_from(self.count.saturating_sub(seen)).unwrap_or(usize::MAX);
        self.lanes.range(self.lanes.len().saturating_sub(new)..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(step: u64, end: f64) -> Lane {
        Lane { session: "1".into(), step, spans: vec![Span { kind: "compute", start: end - 0.5, end }] }
    }

    #[test]
    fn the_last_seconds_are_kept_and_told_once() {
        let mut lanes = Lanes::default();
        (0..100).for_each(|step| lanes.push(lane(step, step as f64)));
        let steps = |seen| lanes.since(seen).iter().map(|lane| lane.step).collect::<Vec<_>>();
        assert_eq!((steps(0).len(), steps(0)[0]), (21, 79));
        assert_eq!((steps(98), steps(lanes.count())), (vec![98, 99], vec![]));
    }

    #[test]
    fn a_large_clusters_lanes_are_bounded() {
        let mut lanes = Lanes::default();
        (0..3 * MOST as u64).for_each(|step| lanes.push(lane(step, 1.0)));
        assert_eq!(lanes.since(0).len(), MOST);
    }
}
