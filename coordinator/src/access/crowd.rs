//! All connections of a port, counted: how many there may be at one time, in all and from one
//! address.
//!
//! Where there are too many, the oldest *stranger* makes room: one that has not yet made a whole, allowed
//! request. So whoever only opens connections drives out their own kind, and not those who
//! have business here. Where there is no stranger, the oldest *onlooker* does, who only looks where others train:
//! a token that may look must not be enough to keep workers out. Workers that take part count in all, and no longer
//! for their address, so that a whole rack may sit behind one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{counter, gauge};

use super::guard::Visitor;

/// Connections from one address at one time, without those of workers that take part.
pub const PER_ADDRESS: usize = 512;

/// Who shares an address: an IPv6 host has a whole /64.
#[must_use]
pub fn household(address: IpAddr) -> IpAddr {
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
pub struct Crowd {
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
    /// Who can be made to make room: strangers, then onlookers, the oldest first.
    yielding: BTreeMap<(Standing, u64), (IpAddr, Arc<Visitor>)>,
}

impl State {
    fn evict(&mut self, from: Option<IpAddr>) -> bool {
        let mut of =
            self.yielding.iter().filter(|(_, (address, _))| from.is_none_or(|from| from == *address));
        let Some((&key, _)) = of.next() else { return false };
        if let Some((address, visitor)) = self.yielding.remove(&key) {
            visitor.make_room();
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

impl Crowd {
    /// Nobody yet, on the port that metrics name so.
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
            .is_some_and(|((standing, _), _)| *standing == Standing::Stranger)
            && state.evict(None)
        {}
    }

    /// Takes a connection, which is a stranger's, and is counted until the place is dropped.
    ///
    /// # Errors
    /// If there is no room, and nobody to make it.
    pub fn enter(self: &Arc<Self>, address: IpAddr, visitor: &Arc<Visitor>) -> Result<Place, Full> {
        let address = household(address);
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
        state.yielding.insert((Standing::Stranger, id), (address, visitor.clone()));
        gauge!("tally_connections", "port" => self.port).set(state.all as f64);
        Ok(Place { crowd: self.clone(), id, address, standing: Mutex::new(Standing::Stranger) })
    }
}

/// What a connection has shown so far; the lesser makes room for the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Stranger,
    /// It only looks, where others train.
    Onlooker,
    /// It has made a request that this port is there for.
    Known,
    /// It takes part, and no longer counts for its address.
    Member,
}

/// A connection's place in the crowd.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    address: IpAddr,
    standing: Mutex<Standing>,
}

impl Place {
    /// It has this standing now, unless it was driven out. A lesser one than before is taken only of a worker that
    /// has left.
    pub fn stand(&self, new: Standing) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.crowd.state();
        let old = *standing;
        if new == old || new < old && old != Standing::Member {
            return;
        }
        if old <= Standing::Onlooker {
            // One that was driven out stays so.
            let Some(who) = state.yielding.remove(&(old, self.id)) else { return };
            if new <= Standing::Onlooker {
                state.yielding.insert((new, self.id), who);
            }
        }
        match (old, new) {
            (Standing::Member, _) => *state.by_address.entry(self.address).or_default() += 1,
            (_, Standing::Member) => state.leave_address(self.address),
            _ => {}
        }
        *standing = new;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let standing = *self.standing.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.crowd.state();
        // One that was driven out is not counted any more.
        let counted = standing > Standing::Onlooker || state.yielding.remove(&(standing, self.id)).is_some();
        if counted {
            state.all -= 1;
            if standing != Standing::Member {
                state.leave_address(self.address);
            }
        }
        gauge!("tally_connections", "port" => self.crowd.port).set(state.all as f64);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn enter(crowd: &Arc<Crowd>, from: IpAddr) -> Result<(Place, Arc<Visitor>), Full> {
        let visitor = Arc::new(Visitor::default());
        crowd.enter(from, &visitor).map(|place| (place, visitor))
    }

    /// Connections, and addresses.
    fn counts(crowd: &Crowd) -> (usize, usize) {
        let state = crowd.state();
        (state.all, state.by_address.len())
    }

    #[test]
    fn trust_1_the_oldest_stranger_makes_room() {
        let crowd = Crowd::new("test", 3, 2);
        let a = enter(&crowd, ip(1)).unwrap();
        let b = enter(&crowd, ip(1)).unwrap();
        let c = enter(&crowd, ip(1)).unwrap();
        assert!(a.1.must_go() && !b.1.must_go() && !c.1.must_go(), "two from one address");
        let d = enter(&crowd, ip(2)).unwrap();
        let e = enter(&crowd, ip(3)).unwrap();
        assert!(b.1.must_go() && !c.1.must_go() && !d.1.must_go(), "three in all");
        for known in [&c, &d, &e] {
            known.0.stand(Standing::Known);
        }
        assert_eq!(enter(&crowd, ip(4)).unwrap_err(), Full::Port);
        assert_eq!(counts(&crowd).0, 3);
        drop((a, b, c));
        assert!(enter(&crowd, ip(4)).is_ok());
        drop((d, e));
        assert_eq!(counts(&crowd), (0, 0));
    }

    #[test]
    fn trust_1_one_address_cannot_keep_others_out() {
        let crowd = Crowd::new("test", 100, 2);
        let one: Vec<_> = (0..50).map(|_| enter(&crowd, ip(1)).unwrap()).collect();
        assert_eq!(one.iter().filter(|(_, visitor)| !visitor.must_go()).count(), 2);
        let (known, _) = &one[49];
        known.stand(Standing::Known);
        one[48].0.stand(Standing::Known);
        assert_eq!(enter(&crowd, ip(1)).unwrap_err(), Full::Address);
        assert!(enter(&crowd, ip(2)).is_ok());
    }

    #[test]
    fn trust_1_strangers_do_not_hold_up_a_port_that_closes() {
        let crowd = Crowd::new("test", 9, 9);
        let all: Vec<_> = (0..4).map(|_| enter(&crowd, ip(1)).unwrap()).collect();
        all[1].0.stand(Standing::Onlooker);
        all[2].0.stand(Standing::Known);
        crowd.close();
        assert_eq!(
            all.iter().map(|(_, visitor)| visitor.must_go()).collect::<Vec<_>>(),
            [true, false, false, true]
        );
        drop(all);
        assert_eq!(counts(&crowd), (0, 0));
    }

    #[test]
    fn trust_1_whoever_only_looks_cannot_keep_workers_out() {
        let crowd = Crowd::new("test", 3, 3);
        let looking: Vec<_> = (0..3).map(|_| enter(&crowd, ip(1)).unwrap()).collect();
        looking.iter().for_each(|(place, _)| place.stand(Standing::Onlooker));
        let worker = enter(&crowd, ip(1)).unwrap();
        assert!(looking[0].1.must_go() && !looking[1].1.must_go(), "the oldest makes room");
        worker.0.stand(Standing::Known);
        let stranger = enter(&crowd, ip(1)).unwrap();
        assert!(looking[1].1.must_go() && !looking[2].1.must_go());
        let next = enter(&crowd, ip(1)).unwrap();
        assert!(stranger.1.must_go() && !looking[2].1.must_go(), "a stranger before one who looks");
        next.0.stand(Standing::Known);
        looking[2].0.stand(Standing::Known);
        looking[2].0.stand(Standing::Onlooker);
        assert_eq!(
            enter(&crowd, ip(1)).unwrap_err(),
            Full::Address,
            "who trains does not make room by looking"
        );
        drop((looking, worker, stranger, next));
        assert_eq!(counts(&crowd), (0, 0));
    }

    #[test]
    fn workers_that_take_part_do_not_count_for_their_address() {
        let crowd = Crowd::new("test", 100, 2);
        let rack: Vec<_> = (0..50)
            .map(|_| {
                let (place, visitor) = enter(&crowd, ip(1)).unwrap();
                place.stand(Standing::Known);
                place.stand(Standing::Member);
                (place, visitor)
            })
            .collect();
        assert!(rack.iter().all(|(_, visitor)| !visitor.must_go()));
        rack[0].0.stand(Standing::Known);
        assert_eq!(crowd.state().by_address[&ip(1)], 1);
        drop(rack);
        assert_eq!(counts(&crowd), (0, 0));
    }

    #[test]
    fn an_ipv6_host_is_its_network() {
        let of = |text: &str| household(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), ip(1));
    }
}
