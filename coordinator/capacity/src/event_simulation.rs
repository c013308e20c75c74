//! A discrete-event simulation: lanes do one piece of work after the other, on pools of servers that they share, by a
//! virtual clock.
//!
//! A thread is a lane and a machine's cores are its pool; a connection is a lane and a link is a pool of one server.
//! Lanes take turns, so connections share a link fairly and threads share cores, one piece of work at a time. Events
//! of the same moment are taken in the order in which they were scheduled, so the same work gives the same times.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// A pool of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolId(usize);

/// A lane of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId(usize);

#[derive(Debug)]
struct Pool {
    idle: usize,
    /// Lanes with work that no server has taken.
    ready: VecDeque<usize>,
    busy: f64,
}

#[derive(Debug)]
struct Lane<E> {
    pool: usize,
    work: VecDeque<(f64, E)>,
    /// It is served, or stands among those that wait for it.
    queued: bool,
}

#[derive(Debug)]
struct Moment<E> {
    at: f64,
    order: u64,
    /// The lane whose work is done then.
    lane: Option<usize>,
    event: E,
}

impl<E> PartialEq for Moment<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Moment<E> {}

impl<E> PartialOrd for Moment<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Moment<E> {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

/// The clock, and all that waits for its moment.
#[derive(Debug)]
pub struct EventSimulation<E> {
    now: f64,
    order: u64,
    moments: BinaryHeap<Moment<E>>,
    pools: Vec<Pool>,
    lanes: Vec<Lane<E>>,
}

impl<E> Default for EventSimulation<E> {
    fn default() -> Self {
        Self { now: 0.0, order: 0, moments: BinaryHeap::new(), pools: Vec::new(), lanes: Vec::new() }
    }
}

impl<E> EventSimulation<E> {
    /// A pool of so many servers.
    pub fn pool(&mut self, servers: usize) -> PoolId {
        self.pools.push(Pool { idle: servers, ready: VecDeque::new(), busy: 0.0 });
        PoolId(self.pools.len() - 1)
    }

    /// A lane on a pool.
    pub fn lane(&mut self, pool: PoolId) -> LaneId {
        self.lanes.push(Lane { pool: pool.0, work: VecDeque::new(), queued: false });
        LaneId(self.lanes.len() - 1)
    }

    /// The time, in seconds.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Seconds that a pool's servers have worked or are to work for what they have begun, all
    /// together.
    #[must_use]
    pub fn busy(&self, pool: PoolId) -> f64 {
        self.pools[pool.0].busy
    }

    /// `event` happens after so many seconds.
    pub fn after(&mut self, seconds: f64, event: E) {
        self.at(seconds, None, event);
    }

    /// `event` happens when a lane has done `seconds` of work, after what it was given before.
    pub fn work(&mut self, lane: LaneId, seconds: f64, event: E) {
        let LaneId(id) = lane;
        let lane = &mut self.lanes[id];
        lane.work.push_back((seconds, event));
        if !std::mem::replace(&mut lane.queued, true) {
            let pool = lane.pool;
            self.pools[pool].ready.push_back(id);
            self.serve(pool);
        }
    }

    fn at(&mut self, seconds: f64, lane: Option<usize>, event: E) {
        self.order += 1;
        self.moments.push(Moment { at: self.now + seconds, order: self.order, lane, event });
    }

    fn serve(&mut self, pool: usize) {
        while self.pools[pool].idle > 0 {
            let Some(id) = self.pools[pool].ready.pop_front() else { return };
            let Some((seconds, event)) = self.lanes[id].work.pop_front() else { continue };
            self.pools[pool].idle -= 1;
            self.pools[pool].busy += seconds;
            self.at(seconds, Some(id), event);
        }
    }
}

impl<E> Iterator for EventSimulation<E> {
    type Item = E;

    /// The next event, at whose moment the clock then stands.
    fn next(&mut self) -> Option<E> {
        let Moment { at, lane, event, .. } = self.moments.pop()?;
        self.now = at;
        if let Some(id) = lane {
            let (pool, more) = (self.lanes[id].pool, !self.lanes[id].work.is_empty());
            self.pools[pool].idle += 1;
            self.lanes[id].queued = more;
            if more {
                self.pools[pool].ready.push_back(id);
            }
            self.serve(pool);
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(clock: &mut EventSimulation<&'static str>) -> Vec<(f64, &'static str)> {
        std::iter::from_fn(|| clock.next().map(|event| (clock.now(), event))).collect()
    }

    #[test]
    fn lanes_take_turns_on_one_server() {
        let mut clock = EventSimulation::default();
        let link = clock.pool(1);
        let (one, two) = (clock.lane(link), clock.lane(link));
        clock.work(one, 1.0, "one's first");
        clock.work(one, 1.0, "one's second");
        clock.work(two, 1.0, "two's first");
        clock.after(2.5, "a timer");
        assert_eq!(
            all(&mut clock),
            [(1.0, "one's first"), (2.0, "two's first"), (2.5, "a timer"), (3.0, "one's second")]
        );
        assert_eq!(clock.busy(link), 3.0);
    }

    #[test]
    fn a_lane_is_served_by_one_server_at_a_time() {
        let mut clock = EventSimulation::default();
        let cores = clock.pool(2);
        let (one, two) = (clock.lane(cores), clock.lane(cores));
        clock.work(one, 2.0, "first");
        clock.work(one, 2.0, "second");
        clock.work(two, 3.0, "beside them");
        assert_eq!(all(&mut clock), [(2.0, "first"), (3.0, "beside them"), (4.0, "second")]);
    }

    #[test]
    fn no_time_at_all_keeps_the_order() {
        let mut clock = EventSimulation::default();
        let pool = clock.pool(usize::MAX);
        let lane = clock.lane(pool);
        clock.work(lane, 0.0, "a");
        clock.after(0.0, "b");
        clock.work(lane, 0.0, "c");
        assert_eq!(all(&mut clock), [(0.0, "a"), (0.0, "b"), (0.0, "c")]);
    }
}
