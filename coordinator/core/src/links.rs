//! The connections between workers, over which a sharded attempt sends gradients and sums.
//!
//! A link is a pair's. The worker that came later dials the earlier one; if that fails, the earlier one dials, so that
//! one of the two may be behind an address translation. A pair that fails is tried again after a growing pause.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Core;
use super::cluster::{LinkAbility, Session};
use super::events::Action;

/// The first pause after a failure; it doubles with each further one …
const PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A worker that was told to dial and says nothing for so long is told again.
const DIALLING: Duration = Duration::from_secs(30);
/// A link that has been up for so long has no failures to its name.
const PROVED: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Link {
    up: bool,
    /// Since when it is up, or when it is tried next.
    at: Duration,
    /// Failures in a row.
    failures: u32,
}

/// The state of each pair that was ever dialled.
#[derive(Clone, Debug, Default)]
pub struct Links {
    pairs: BTreeMap<(Session, Session), Link>,
    /// Nothing is due before this moment, unless another worker comes.
    next: Duration,
}

fn pair(a: Session, b: Session) -> (Session, Session) {
    (a.min(b), a.max(b))
}

impl Links {
    /// Whether two workers have a link.
    #[must_use]
    pub fn is_up(&self, a: Session, b: Session) -> bool {
        self.pairs.get(&pair(a, b)).is_some_and(|link| link.up)
    }

    /// How many links are up.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pairs.values().filter(|link| link.up).count()
    }

    /// A worker may have links from now on.
    pub fn worker_came(&mut self) {
        self.next = Duration::ZERO;
    }

    /// Whether a dial may be due. There are many pairs and many ticks, so that pairs are looked at only then.
    #[must_use]
    pub fn any_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// The dials that are due between these workers, each with whether it listens: who dials whom.
    pub fn due(&mut self, now: Duration, workers: &[(Session, bool)]) -> Vec<(Session, Session)> {
        let mut dials = Vec::new();
        self.next = Duration::MAX;
        for (i, &(early, early_listens)) in workers.iter().enumerate() {
            for &(late, late_listens) in &workers[i + 1..] {
                let link =
                    self.pairs.entry(pair(early, late)).or_insert(Link { up: false, at: now, failures: 0 });
                if link.up {
                    continue;
                }
                if now < link.at {
                    self.next = self.next.min(link.at);
                    continue;
                }
                let dial = match (early_listens, late_listens) {
                    (true, true) if link.failures % 2 == 1 => (early, late),
                    (true, _) => (late, early),
                    (false, true) => (early, late),
                    (false, false) => continue,
                };
                link.at = now + DIALLING;
                self.next = self.next.min(link.at);
                dials.push(dial);
            }
        }
        dials
    }

    /// A link is up.
    pub fn opened(&mut self, now: Duration, a: Session, b: Session) {
        let failures = self.pairs.get(&pair(a, b)).map_or(0, |link| link.failures);
        self.pairs.insert(pair(a, b), Link { up: true, at: now, failures });
    }

    /// A link broke, or could not be opened. Returns whether it was up.
    pub fn broke(&mut self, now: Duration, a: Session, b: Session) -> bool {
        let Some(link) = self.pairs.get_mut(&pair(a, b)) else { return false };
        let was_up = std::mem::replace(&mut link.up, false);
        if was_up && now.saturating_sub(link.at) >= PROVED {
            link.failures = 0;
        }
        link.at = now + LONGEST_PAUSE.min(PAUSE * 2u32.pow(link.failures.min(6)));
        link.failures += 1;
        self.next = self.next.min(link.at);
        was_up
    }

    /// A worker is gone.
    pub fn remove(&mut self, session: Session) {
        self.pairs.retain(|&(a, b), _| a != session && b != session);
    }
}

impl Core {
    /// Has workers open the links that are due.
    pub(super) fn dial(&mut self, now: Duration) {
        if !self.wants_sharded() || !self.links.any_due(now) {
            return;
        }
        let able = self.members.0.iter().filter(|(_, m)| m.was_ready && m.links != LinkAbility::None);
        let workers: Vec<(Session, bool)> =
            able.map(|(&session, m)| (session, m.links == LinkAbility::Listens)).collect();
        for (session, peer) in self.links.due(now, &workers) {
            self.actions.push(Action::Dial { session, peer });
        }
    }

    pub(super) fn link_up(&mut self, now: Duration, session: Session, peer: Session) {
        let able =
            |session: &Session| self.members.0.get(session).is_some_and(|m| m.links != LinkAbility::None);
        if able(&session) && able(&peer) && session != peer {
            self.links.opened(now, session, peer);
            // A run that is to be sharded need not wait for the next step's end to begin.
            if self.flight.is_none() {
                self.boundary(now);
            }
        }
    }

    pub(super) fn link_down(&mut self, now: Duration, session: Session, peer: Session, reason: &str) {
        if !self.links.broke(now, session, peer) {
            return;
        }
        let Some(flight) = self.flight.as_ref().filter(|flight| !flight.closing) else { return };
        let mut chunks = flight.missing_of(session);
        chunks.extend(flight.missing_of(peer));
        chunks.sort_unstable();
        chunks.dedup();
        let name = |session: Session| self.members.0.get(&session).map_or("a worker", |m| m.name.as_str());
        let reason = format!("the link between {} and {} broke: {reason}", name(session), name(peer));
        if self.take_back(now, chunks, &reason) {
            self.close_if_complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_later_worker_dials_and_if_that_fails_the_earlier_one() {
        let mut links = Links::default();
        let workers = [(1, true), (2, true)];
        assert!(links.any_due(S));
        assert_eq!(links.due(S, &workers), [(2, 1)]);
        assert!(!links.any_due(2 * S) && links.any_due(S + DIALLING));
        assert_eq!(links.due(S, &workers), [], "it is being dialled");
        assert!(!links.broke(2 * S, 2, 1));
        assert!(!links.any_due(2 * S) && links.any_due(3 * S));
        assert_eq!(links.due(2 * S, &workers), []);
        assert_eq!(links.due(3 * S, &workers), [(1, 2)]);
        links.opened(4 * S, 1, 2);
        assert!(links.is_up(2, 1));
        assert_eq!(links.due(100 * S, &workers), []);
        assert!(!links.any_due(1000 * S));
        links.worker_came();
        assert!(links.any_due(5 * S));
        // A link that breaks soon again and again is tried less and less often.
        assert!(links.broke(5 * S, 2, 1));
        assert_eq!((links.due(6 * S, &workers), links.due(7 * S, &workers)), (vec![], vec![(2, 1)]));
        links.remove(2);
        assert_eq!(links.due(7 * S, &workers), [(2, 1)]);
    }

    #[test]
    fn a_worker_that_does_not_listen_dials() {
        let mut links = Links::default();
        assert_eq!(links.due(S, &[(1, false), (2, true), (3, false)]), [(1, 2), (3, 2)]);
    }
}
