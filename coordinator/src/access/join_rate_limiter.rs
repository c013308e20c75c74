//! A limit on the rate of joins from one address.
//!
//! A whole rack may join at the same time. A worker that joins and leaves again and again is slowed down, because
//! each join costs the transfer of a whole model.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::connection_limiter::address_key;

/// Joins at the same time from one address.
const BURST: f64 = 512.0;
/// Joins a second after that.
const RATE: f64 = 16.0;
/// Addresses that are remembered.
const MOST: usize = 4096;

/// A token bucket for each address.
#[derive(Debug, Default)]
pub struct JoinRateLimiter(Mutex<HashMap<IpAddr, (f64, Instant)>>);

impl JoinRateLimiter {
    /// Whether one more may come in from this address now.
    pub fn allow(&self, address: IpAddr) -> bool {
        self.allow_at(address_key(address), Instant::now())
    }

    fn allow_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |&(left, at): &(f64, Instant)| {
            (left + RATE * now.saturating_duration_since(at).as_secs_f64()).min(BURST)
        };
        if buckets.len() >= MOST && !buckets.contains_key(&address) {
            // A bucket that is full again carries no information.
            buckets.retain(|_, bucket| left(bucket) < BURST);
            if buckets.len() >= MOST {
                return false;
            }
        }
        let bucket = buckets.entry(address).or_insert((BURST, now));
        let left = left(bucket);
        let allowed = left >= 1.0;
        *bucket = (if allowed { left - 1.0 } else { left }, now);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn trust_1_a_rack_comes_in_at_once_and_a_storm_is_slowed_down() {
        let (joins, start) = (JoinRateLimiter::default(), Instant::now());
        let one: IpAddr = [10, 0, 0, 1].into();
        let storm = |at: Duration| (0..10_000).filter(|_| joins.allow_at(one, start + at)).count();
        assert_eq!(storm(Duration::ZERO), 512);
        assert_eq!(storm(Duration::from_secs(10)), 160);
        assert!(joins.allow_at([10, 0, 0, 2].into(), start), "another address has its own");
        assert_eq!(storm(Duration::from_secs(3600)), 512);
    }

    #[test]
    fn trust_1_the_memory_of_addresses_is_bounded() {
        let (joins, start) = (JoinRateLimiter::default(), Instant::now());
        let from = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let allowed = (0..10_000).filter(|&n| joins.allow_at(from(n), start)).count();
        assert_eq!(allowed, MOST);
        assert!(joins.allow_at(from(1), start), "one that is remembered is let in");
        assert!(joins.allow_at(from(20_000), start + Duration::from_secs(1)), "old ones are forgotten");
    }
}
