//! The slots of shared memory into which a worker writes its chunks for a coordinator on the same machine.
//!
//! A slot is free again when its chunk is summed or its attempt is over: the coordinator discards whatever it may
//! still read there after that (**SUM-1**). When no slot is free, a chunk goes through the socket.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tally_proto::segment::Segment;

/// A shared memory segment, and the chunks in its places.
#[derive(Debug)]
pub struct SlotPool {
    segment: Segment,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// The slot that became free last is used first: it is in a cache.
    free: Vec<u32>,
    used: Vec<UsedSlot>,
}

#[derive(Clone, Copy, Debug)]
struct UsedSlot {
    slot: u32,
    attempt: u32,
    index: u32,
}

impl SlotPool {
    /// A pool of all slots of a segment.
    #[must_use]
    pub fn new(segment: Segment) -> Self {
        let free = (0..segment.slots()).rev().collect();
        Self { segment, slots: Mutex::new(Slots { free, used: Vec::new() }) }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a chunk into a free slot, if there is one, and returns the slot.
    pub fn write(&self, attempt: u32, index: u32, chunk: &[u8]) -> Option<u32> {
        let slot = self.slots().free.pop()?;
        match self.segment.write(slot, chunk) {
            Ok(()) => {
                self.slots().used.push(UsedSlot { slot, attempt, index });
                Some(slot)
            }
            // The slot stays out of use: a slot that could not be written once is not tried again.
            Err(error) => {
                tracing::warn!("sent through the socket: cannot write to shared memory: {error}");
                None
            }
        }
    }

    /// Frees the slots of chunk `index` of this attempt, which is summed.
    pub fn release(&self, attempt: u32, index: u32) {
        self.release_where(|used| used.attempt == attempt && used.index == index);
    }

    /// Frees the slots of attempts before this one, which are over.
    pub fn release_before(&self, attempt: u32) {
        self.release_where(|used| used.attempt < attempt);
    }

    fn release_where(&self, done: impl Fn(&UsedSlot) -> bool) {
        let Slots { free, used } = &mut *self.slots();
        free.extend(used.iter().filter(|used| done(used)).map(|used| used.slot));
        used.retain(|used| !done(used));
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sum_1_a_slot_is_written_again_when_its_chunk_is_summed_or_its_attempt_over() {
        let pool = SlotPool::new(Segment::create(3).unwrap());
        let write = |attempt, index| pool.write(attempt, index, &[1]);
        assert_eq!([write(1, 0), write(1, 1), write(1, 2), write(1, 3)], [Some(0), Some(1), Some(2), None]);
        pool.release(2, 1);
        assert_eq!(write(1, 3), None, "that was another attempt");
        pool.release(1, 1);
        pool.release(1, 1);
        assert_eq!([write(1, 3), write(1, 4)], [Some(1), None]);
        pool.release_before(1);
        assert_eq!(write(1, 4), None, "this attempt goes on");
        pool.release_before(2);
        let mut all = [write(2, 0), write(2, 1), write(2, 2)];
        all.sort_unstable();
        assert_eq!(all, [Some(0), Some(1), Some(2)]);
    }
}
