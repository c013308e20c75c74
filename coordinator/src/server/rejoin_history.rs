//! Workers that join and are lost again and again, before they have done a step or because their link is too slow.
//!
//! Each of these unproductive sessions costs a state of the model. The person who runs the coordinator gets a warning at
//! the second, the fourth, the eighth session of a worker and so on, since such a worker comes back for ever.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The most names that are remembered.
const MAX_NAMES: usize = 1024;
/// Sessions that are farther apart than this are not counted together.
const WINDOW: Duration = Duration::from_secs(600);

/// The unproductive sessions of each worker, by its name.
#[derive(Debug, Default)]
pub struct RejoinHistory(HashMap<String, (u32, Instant)>);

impl RejoinHistory {
    /// Counts an unproductive session of the worker with this name. Returns their number if a warning is due.
    pub fn unproductive(&mut self, name: &str, now: Instant) -> Option<u32> {
        self.0.retain(|_, (_, last)| now.saturating_duration_since(*last) < WINDOW);
        if self.0.len() >= MAX_NAMES && !self.0.contains_key(name) {
            return None;
        }
        let (times, last) = self.0.entry(name.into()).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
        (*times >= 2 && times.is_power_of_two()).then_some(*times)
    }

    /// The worker with this name has had a productive session.
    pub fn productive(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_come_at_the_second_time_and_then_ever_more_seldom() {
        let (mut history, now) = (RejoinHistory::default(), Instant::now());
        let warned: Vec<u32> = (0..100).filter_map(|_| history.unproductive("a", now)).collect();
        assert_eq!(warned, [2, 4, 8, 16, 32, 64]);
        assert_eq!(history.unproductive("b", now), None, "each worker is counted for itself");
        history.productive("a");
        assert_eq!([history.unproductive("a", now), history.unproductive("a", now)], [None, Some(2)]);
        assert_eq!(history.unproductive("a", now + WINDOW), None);
    }

    #[test]
    fn trust_1_names_without_end_take_no_memory_without_end() {
        let (mut history, now) = (RejoinHistory::default(), Instant::now());
        (0..2 * MAX_NAMES).for_each(|n| {
            history.unproductive(&n.to_string(), now);
        });
        assert_eq!(history.0.len(), MAX_NAMES);
    }
}
