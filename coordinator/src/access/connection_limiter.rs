//! All connections of a port, counted: how many there may be at one time, in all and from one
//! address.
//!
//! If there are too many, the oldest *stranger* is closed: a connection that has not completed an allowed request
//! yet. So a peer that only opens connections closes other strangers, and not connections that are in use. Without
//! strangers, the oldest *onlooker* is closed, which only views a run where others train: a token for viewing must
//! not be enough to keep workers out. Workers that take part count towards the limit of the port, and not towards
//! that of their address, so that a whole rack can be behind one address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};

use super::connection_monitor::ConnectionMonitor;

/// Connections from one address at one time, without those of workers that take part.
pub const PER_ADDRESS: usize = 512;

/// Who shares an address: an IPv6 host has a whole /64.
#[must_use]
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are too many in all.
    Port,
    /// There are too many from its address.
    Address,
}

/// All connections of one port.
#[derive(Debug)]
pub struct ConnectionLimiter {
    port: &'static str,
    most: usize,
    per_address: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Connections that can be closed for others: strangers, then onlookers, the oldest first.
    yielding: BTreeMap<(TrustLevel, u64), (IpAddr, Arc<ConnectionMonitor>)>,
}

impl State {
    fn evict(&mut self, from: Option<IpAddr>) -> bool {
        let mut of =
            self.yielding.iter().filter(|(_, (address, _))| from.is_none_or(|from| from == *address));
        let Some((&key, _)) = of.next() else { return false };
        if let Some((address, monitor)) = self.yielding.remove(&key) {
            monitor.evict();
            self.leave_address(address);
            self.all -= 1;
        }
        true
    }

    fn leave_address(&mut self, address: IpAddr) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

impl ConnectionLimiter {
    /// No connection yet, on the port with this name in metrics.
    #[must_use]
    pub fn new(port: &'static str, most: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { port, most, per_address, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all strangers away: the port closes.
    pub fn close(&self) {
        let mut state = self.state();
        while state
            .yielding
            .first_key_value()
            .is_some_and(|((standing, _), _)| *standing == TrustLevel::Stranger)
            && state.evict(None)
        {}
    }

    /// Takes a connection, which is a stranger's, and is counted until the place is dropped.
    ///
    /// # Errors
    /// If there is no room, and no connection that could be closed.
    pub fn acquire(
        self: &Arc<Self>,
        address: IpAddr,
        monitor: &Arc<ConnectionMonitor>,
    ) -> Result<ConnectionSlot, Full> {
        let address = address_key(address);
        let mut state = self.state();
        let here = state.by_address.get(&address).copied().unwrap_or(0);
        let refused = if here >= self.per_address && !state.evict(Some(address)) {
            Some(Full::Address)
        } else if state.all >= self.most && !state.evict(None) {
            Some(Full::Port)
        } else {
            None
        };
        if let Some(full) = refused {
            counter!("tally_connections_refused_total", "port" => self.port).increment(1);
            return Err(full);
        }
        state.next += 1;
        state.all += 1;
        let id = state.next;
        *state.by_address.entry(address).or_default() += 1;
        state.yielding.insert((TrustLevel::Stranger, id), (address, monitor.clone()));
        gauge!("tally_connections", "port" => self.port).set(state.all as f64);
        Ok(ConnectionSlot { limiter: self.clone(), id, address, standing: Mutex::new(TrustLevel::Stranger) })
    }
}

/// The trust in a connection. A connection with less trust is closed for one with more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrustLevel {
    /// Nothing.
    Stranger,
    /// It only views a run where others train.
    Onlooker,
    /// It has completed an allowed request of this port's main kind.
    Known,
    /// It takes part, and no longer counts for its address.
    Member,
}

/// A connection's place in the limiter.
#[derive(Debug)]
pub struct ConnectionSlot {
    limiter: Arc<ConnectionLimiter>,
    id: u64,
    address: IpAddr,
    standing: Mutex<TrustLevel>,
}

impl ConnectionSlot {
    /// It has this standing now, unless it was driven out. A lesser one than before is taken only of a worker that
    /// has left.
    pub fn set_trust(&self, new: TrustLevel) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.limiter.state();
        let old = *standing;
        if new == old || new < old && old != TrustLevel::Member {
            return;
        }
        if old <= TrustLevel::Onlooker {
            // One that was driven out stays so.
            let Some(who) = state.yielding.remove(&(old, self.id)) else { return };
            if new <= TrustLevel::Onlooker {
                state.yielding.insert((new, self.id), who);
            }
        }
        match (old, new) {
            (TrustLevel::Member, _) => *state.by_address.entry(self.address).or_default() += 1,
            (_, TrustLevel::Member) => state.leave_address(self.address),
            _ => {}
        }
        *standing = new;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let standing = *self.standing.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.limiter.state();
        // One that was driven out is not counted any more.
        let counted =
            standing > TrustLevel::Onlooker || state.yielding.remove(&(standing, self.id)).is_some();
        if counted {
            state.all -= 1;
            if standing != TrustLevel::Member {
                state.leave_address(self.address);
            }
        }
        gauge!("tally_connections", "port" => self.limiter.port).set(state.all as f64);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn enter(
        limiter: &Arc<ConnectionLimiter>,
        from: IpAddr,
    ) -> Result<(ConnectionSlot, Arc<ConnectionMonitor>), Full> {
        let monitor = Arc::new(ConnectionMonitor::default());
        limiter.acquire(from, &monitor).map(|place| (place, monitor))
    }

    /// Connections, and addresses.
    fn counts(limiter: &ConnectionLimiter) -> (usize, usize) {
        let state = limiter.state();
        (state.all, state.by_address.len())
    }

    #[test]
    fn trust_1_the_oldest_stranger_makes_room() {
        let limiter = ConnectionLimiter::new("test", 3, 2);
        let a = enter(&limiter, ip(1)).unwrap();
        let b = enter(&limiter, ip(1)).unwrap();
        let c = enter(&limiter, ip(1)).unwrap();
        assert!(a.1.is_evicted() && !b.1.is_evicted() && !c.1.is_evicted(), "two from one address");
        let d = enter(&limiter, ip(2)).unwrap();
        let e = enter(&limiter, ip(3)).unwrap();
        assert!(b.1.is_evicted() && !c.1.is_evicted() && !d.1.is_evicted(), "three in all");
        for known in [&c, &d, &e] {
            known.0.set_trust(TrustLevel::Known);
        }
        assert_eq!(enter(&limiter, ip(4)).unwrap_err(), Full::Port);
        assert_eq!(counts(&limiter).0, 3);
        drop((a, b, c));
        assert!(enter(&limiter, ip(4)).is_ok());
        drop((d, e));
        assert_eq!(counts(&limiter), (0, 0));
    }

    #[test]
    fn trust_1_one_address_cannot_keep_others_out() {
        let limiter = ConnectionLimiter::new("test", 100, 2);
        let one: Vec<_> = (0..50).map(|_| enter(&limiter, ip(1)).unwrap()).collect();
        assert_eq!(one.iter().filter(|(_, monitor)| !monitor.is_evicted()).count(), 2);
        let (known, _) = &one[49];
        known.set_trust(TrustLevel::Known);
        one[48].0.set_trust(TrustLevel::Known);
        assert_eq!(enter(&limiter, ip(1)).unwrap_err(), Full::Address);
        assert!(enter(&limiter, ip(2)).is_ok());
    }

    #[test]
    fn trust_1_strangers_do_not_hold_up_a_port_that_closes() {
        let limiter = ConnectionLimiter::new("test", 9, 9);
        let all: Vec<_> = (0..4).map(|_| enter(&limiter, ip(1)).unwrap()).collect();
        all[1].0.set_trust(TrustLevel::Onlooker);
        all[2].0.set_trust(TrustLevel::Known);
        limiter.close();
        assert_eq!(
            all.iter().map(|(_, monitor)| monitor.is_evicted()).collect::<Vec<_>>(),
            [true, false, false, true]
        );
        drop(all);
        assert_eq!(counts(&limiter), (0, 0));
    }

    #[test]
    fn trust_1_whoever_only_looks_cannot_keep_workers_out() {
        let limiter = ConnectionLimiter::new("test", 3, 3);
        let looking: Vec<_> = (0..3).map(|_| enter(&limiter, ip(1)).unwrap()).collect();
        looking.iter().for_each(|(place, _)| place.set_trust(TrustLevel::Onlooker));
        let worker = enter(&limiter, ip(1)).unwrap();
        assert!(looking[0].1.is_evicted() && !looking[1].1.is_evicted(), "the oldest makes room");
        worker.0.set_trust(TrustLevel::Known);
        let stranger = enter(&limiter, ip(1)).unwrap();
        assert!(looking[1].1.is_evicted() && !looking[2].1.is_evicted());
        let next = enter(&limiter, ip(1)).unwrap();
        assert!(stranger.1.is_evicted() && !looking[2].1.is_evicted(), "a stranger before one who looks");
        next.0.set_trust(TrustLevel::Known);
        looking[2].0.set_trust(TrustLevel::Known);
        looking[2].0.set_trust(TrustLevel::Onlooker);
        assert_eq!(
            enter(&limiter, ip(1)).unwrap_err(),
            Full::Address,
            "who trains does not make room by looking"
        );
        drop((looking, worker, stranger, next));
        assert_eq!(counts(&limiter), (0, 0));
    }

    #[test]
    fn workers_that_take_part_do_not_count_for_their_address() {
        let limiter = ConnectionLimiter::new("test", 100, 2);
        let rack: Vec<_> = (0..50)
            .map(|_| {
                let (place, monitor) = enter(&limiter, ip(1)).unwrap();
                place.set_trust(TrustLevel::Known);
                place.set_trust(TrustLevel::Member);
                (place, monitor)
            })
            .collect();
        assert!(rack.iter().all(|(_, monitor)| !monitor.is_evicted()));
        rack[0].0.set_trust(TrustLevel::Known);
        assert_eq!(limiter.state().by_address[&ip(1)], 1);
        drop(rack);
        assert_eq!(counts(&limiter), (0, 0));
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let of = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), ip(1));
    }
}
