//! Workers that come and go, and nothing comes of it.
//!
//! Each of their stays ends before the worker has a replica, or since its link is too slow, and each costs a state
//! of the model. Whoever looks after the coordinator is told of it: at the second time, the fourth, the eighth and so
//! on, since the worker comes back for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Names that are remembered.
const MOST: usize = 1024;
/// Stays that are farther apart have nothing to do with each other.
const TOGETHER: Duration = Duration::from_secs(600);

/// The stays in vain of each worker, by its name.
#[derive(Debug, Default)]
pub struct Returns(HashMap<String, (u32, Instant)>);

impl Returns {
    /// A worker of this name has come and gone in vain. How often, if that is worth telling.
    pub fn in_vain(&mut self, name: &str, now: Instant) -> Option<u32> {
        self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < TOGETHER);
        if self.0.len() >= MOST && !self.0.contains_key(name) {
            return None;
        }
        let (times, last) = self.0.entry(name.into()).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
        (*times >= 2 && times.is_power_of_two()).then_some(*times)
    }

    /// One of this name has taken part.
    pub fn took_part(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_of_at_the_second_time_and_then_ever_more_seldom() {
        let (mut returns, now) = (Returns::default(), Instant::now());
        let told: Vec<u32> = (0..100).filter_map(|_| returns.in_vain("a", now)).collect();
        assert_eq!(told, [2, 4, 8, 16, 32, 64]);
        assert_eq!(returns.in_vain("b", now), None, "each worker is counted for itself");
        returns.took_part("a");
        assert_eq!([returns.in_vain("a", now), returns.in_vain("a", now)], [None, Some(2)]);
        assert_eq!(returns.in_vain("a", now + TOGETHER), None);
    }

    #[test]
    fn trust_1_names_without_end_take_no_memory_without_end() {
        let (mut returns, now) = (Returns::default(), Instant::now());
        (0..2 * MOST).for_each(|n| drop(returns.in_vain(&n.to_string(), now)));
        assert_eq!(returns.0.len(), MOST);
    }
}
