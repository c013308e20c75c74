//! All connections of a port, counted: how many there may be at one time, in all and from one
//! address.
//!
//! Where there are too many, the oldest *stranger* makes room: one that has not yet made a whole, allowed
//! request. So whoever only opens connections drives out their own kind, and not those who
//! have business here. Workers that take part count in all, and no longer for their address, so that a whole rack
//! may sit behind one.

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
    /// Oldest first.
    strangers: BTreeMap<u64, (IpAddr, Arc<Visitor>)>,
}

impl State {
    fn evict(&mut self, from: Option<IpAddr>) -> bool {
        let mut of =
            self.strangers.iter().filter(|(_, (address, _))| from.is_none_or(|from| from == *address));
        let Some((&id, _)) = of.next() else { return false };
        if let Some((address, visitor)) = self.strangers.remove(&id) {
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

    /// Takes a connection, which is a stranger's, and is counted until the place is dropped.
    ///
    /// # Errors
    /// If there is no room, and no stranger to make it.
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
        state.strangers.insert(id, (address, visitor.clone()));
        gauge!("tally_connections", "port" => self.port).set(state.all as f64);
        Ok(Place { crowd: self.clone(), id, address, standing: Mutex::new(Standing::Stranger) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Stranger,
    /// It has made an allowed request.
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
    fn stand(&self, new: Standing) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.crowd.state();
        // One that was driven out stays so.
        if *standing == Standing::Stranger && state.strangers.remove(&self.id).is_none() {
            return;
        }
        match (*standing, new) {
            (Standing::Member, Standing::Known) => {
                *state.by_address.entry(self.address).or_default() += 1;
            }
            (Standing::Stranger | Standing::Known, Standing::Member) => state.leave_address(self.address),
            _ => {}
        }
        *standing = new;
    }

    /// It has made a request that it may make.
    pub fn known(&self) {
        self.stand(Standing::Known);
    }

    /// It takes part.
    pub fn member(&self) {
        self.stand(Standing::Member);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let standing = *self.standing.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.crowd.state();
        // A stranger that was driven out is not counted any more.
        let counted = standing != Standing::Stranger || state.strangers.remove(&self.id).is_some();
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
            known.0.known();
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
        known.known();
        one[48].0.known();
        assert_eq!(enter(&crowd, ip(1)).unwrap_err(), Full::Address);
        assert!(enter(&crowd, ip(2)).is_ok());
    }

    #[test]
    fn workers_that_take_part_do_not_count_for_their_address() {
        let crowd = Crowd::new("test", 100, 2);
        let rack: Vec<_> = (0..50)
            .map(|_| {
                let (place, visitor) = enter(&crowd, ip(1)).unwrap();
                place.known();
                place.member();
                (place, visitor)
            })
            .collect();
        assert!(rack.iter().all(|(_, visitor)| !visitor.must_go()));
        rack[0].0.known();
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
