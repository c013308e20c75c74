//! Where this worker puts its chunks in memory that it shares with a coordinator on the same
//! machine.
//!
//! A place is free again when its chunk is summed or its attempt is over: whatever the
//! coordinator may still read there then, it has no use for (**SUM-1**). If there is none free, a
//! chunk goes through the socket.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tally_proto::segment::Segment;

/// A segment, and who has which of its places.
#[derive(Debug)]
pub struct Places {
    segment: Segment,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The last that became free is taken first: it is in a cache.
    free: Vec<u32>,
    taken: Vec<Taken>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    place: u32,
    attempt: u32,
    index: u32,
}

impl Places {
    /// All of a segment's places, free.
    #[must_use]
    pub fn new(segment: Segment) -> Self {
        let free = (0..segment.places()).rev().collect();
        Self { segment, state: Mutex::new(State { free, taken: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a chunk to a free place, if there is one, and returns it.
    pub fn put(&self, attempt: u32, index: u32, chunk: &[u8]) -> Option<u32> {
        let place = self.state().free.pop()?;
        match self.segment.write(place, chunk) {
            Ok(()) => {
                self.state().taken.push(Taken { place, attempt, index });
                Some(place)
            }
            // It is not free again: what could not be written once is not tried for ever.
            Err(error) => {
                tracing::warn!("sent through the socket: cannot write to shared memory: {error}");
                None
            }
        }
    }

    /// Chunk `index` of this attempt is summed.
    pub fn summed(&self, attempt: u32, index: u32) {
        self.give_back(|taken| taken.attempt == attempt && taken.index == index);
    }

    /// Attempts before this one are over.
    pub fn turn(&self, attempt: u32) {
        self.give_back(|taken| taken.attempt < attempt);
    }

    fn give_back(&self, over: impl Fn(&Taken) -> bool) {
        let State { free, taken } = &mut *self.state();
        free.extend(taken.iter().filter(|taken| over(taken)).map(|taken| taken.place));
        taken.retain(|taken| !over(taken));
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sum_1_a_place_is_written_again_when_its_chunk_is_summed_or_its_attempt_over() {
        let places = Places::new(Segment::create(3).unwrap());
        let put = |attempt, index| places.put(attempt, index, &[1]);
        assert_eq!([put(1, 0), put(1, 1), put(1, 2), put(1, 3)], [Some(0), Some(1), Some(2), None]);
        places.summed(2, 1);
        assert_eq!(put(1, 3), None, "that was another attempt");
        places.summed(1, 1);
        places.summed(1, 1);
        assert_eq!([put(1, 3), put(1, 4)], [Some(1), None]);
        places.turn(1);
        assert_eq!(put(1, 4), None, "this attempt goes on");
        places.turn(2);
        let mut all = [put(2, 0), put(2, 1), put(2, 2)];
        all.sort_unstable();
        assert_eq!(all, [Some(0), Some(1), Some(2)]);
    }
}
