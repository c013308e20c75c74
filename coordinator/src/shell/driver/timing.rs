//! What workers did when: their clocks are asked, and what they tell is moved to one clock.

use super::*;
use crate::timeline::Span;

impl Driver {
    /// Seconds since 1970, by the clock that all times are told by.
    pub(super) fn now(&self) -> f64 {
        self.parts.feed.clock().unix()
    }

    /// Asks the workers whose clock it is time to ask.
    pub(super) fn ask_clocks(&mut self) {
        let now = self.now();
        let due =
            self.peers.iter().filter(|(_, peer)| peer.time.as_ref().is_some_and(|t| t.clock.is_due(now)));
        for session in due.map(|(&session, _)| session).collect::<Vec<_>>() {
            // The moment of each question counts, not of the first.
            let now = self.now();
            let Some(time) = self.peers.get_mut(&session).and_then(|peer| peer.time.as_mut()) else {
                continue;
            };
            let number = time.clock.ask(now);
            self.tell(session, 0, 0, coordinator_message::Body::Clock(v1::ClockQuestion { number }));
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
        self.parts.feed.change(|view| view.lane(lane.shown()));
    }
}
