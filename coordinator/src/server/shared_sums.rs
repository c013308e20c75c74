//! Shared memory in which a sum is written once, for all workers of this machine to read.
//!
//! A slot is written again only after every worker that was told of it has read it. A worker that has confirmed a
//! step's commit has read everything that was sent before. So there are two halves, with a model's chunks each: an
//! attempt takes a half whose readers have all confirmed. If there is none, its sums are sent as over a network. A
//! worker that is gone is not waited for: if it still reads wrong values it cannot commit them, because the digest is
//! checked (**REP-1**).

use std::collections::BTreeMap;

use tally_proto::segment::Segment;
use tally_proto::v1;

use tally_core::cluster::Session;

/// The sums of the attempt in flight, and of one before.
#[derive(Debug)]
pub struct SharedSums {
    segment: Option<Segment>,
    chunks: u32,
    /// The workers that may still read each half, with the step that it held then.
    readers: [BTreeMap<Session, u64>; 2],
    half: Option<usize>,
}

impl SharedSums {
    /// Memory for sums of so many chunks. If the system gives no memory, no worker is offered any.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        let segment = chunks.checked_mul(2).and_then(|slots| {
            let made = Segment::create(slots);
            made.inspect_err(|e| tracing::debug!("no memory is shared with workers of this machine: {e}"))
                .ok()
        });
        Self { segment, chunks, readers: Default::default(), half: None }
    }

    /// What a worker is told of it.
    #[must_use]
    pub fn offer(&self) -> Option<v1::Segment> {
        self.segment.as_ref().map(Segment::offer)
    }

    /// Another attempt begins.
    pub fn begin(&mut self) {
        self.half = self.readers.iter().position(BTreeMap::is_empty);
    }

    /// Writes a chunk of the attempt's sum and returns its slot.
    pub fn write(&mut self, index: u32, chunk: &[u8]) -> Option<u32> {
        let slot = self.half? as u32 * self.chunks + index;
        match self.segment.as_ref()?.write(slot, chunk) {
            Ok(()) => Some(slot),
            Err(error) => {
                tracing::warn!(
                    "sums are sent over sockets from here on: cannot write to shared memory: {error}"
                );
                self.segment = None;
                None
            }
        }
    }

    /// A worker was told of the attempt's half.
    pub fn published_to(&mut self, session: Session, step: u64) {
        if let Some(half) = self.half {
            self.readers[half].insert(session, step);
        }
    }

    /// A worker has confirmed this step's commit.
    pub fn confirmed(&mut self, session: Session, step: u64) {
        for readers in &mut self.readers {
            if readers.get(&session).is_some_and(|shown| *shown <= step) {
                readers.remove(&session);
            }
        }
    }

    /// A worker is gone.
    pub fn remove_reader(&mut self, session: Session) {
        for readers in &mut self.readers {
            readers.remove(&session);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(sums: &SharedSums, slot: u32) -> u8 {
        let mut values = [0];
        Segment::open(&sums.offer().unwrap(), false).unwrap().read(slot, &mut values).unwrap();
        values[0]
    }

    /// Begins an attempt at `step`, shows it to `readers`, and returns the slot of chunk 1.
    fn attempt(sums: &mut SharedSums, step: u64, readers: &[Session]) -> Option<u32> {
        sums.begin();
        let slot = sums.write(1, &[step as u8])?;
        readers.iter().for_each(|&session| sums.published_to(session, step));
        Some(slot)
    }

    #[test]
    fn rep_1_nothing_is_written_over_that_somebody_may_still_read() {
        let mut sums = SharedSums::new(3);
        let first = attempt(&mut sums, 1, &[7, 8]).unwrap();
        sums.confirmed(7, 1);
        let second = attempt(&mut sums, 2, &[7, 8]).unwrap();
        assert_ne!(first, second, "8 may still read the first");
        sums.confirmed(7, 2);
        assert_eq!(attempt(&mut sums, 3, &[7, 8]), None, "8 may still read both");
        assert_eq!((read(&sums, first), read(&sums, second)), (1, 2));
        sums.confirmed(8, 1);
        assert_eq!(attempt(&mut sums, 3, &[7, 8]), Some(first));
        sums.remove_reader(8);
        assert_eq!(attempt(&mut sums, 4, &[7]), Some(second));
    }

    #[test]
    fn rep_1_a_void_attempts_half_is_not_free_before_the_step_is_confirmed() {
        let mut sums = SharedSums::new(1);
        let slot = |half: u32| Some(half);
        sums.begin();
        assert_eq!(sums.write(0, &[1]), slot(0));
        sums.published_to(7, 5);
        sums.begin();
        assert_eq!(sums.write(0, &[2]), slot(1));
        sums.published_to(7, 5);
        sums.begin();
        assert_eq!(sums.write(0, &[3]), None);
        sums.confirmed(7, 4);
        sums.begin();
        assert_eq!(sums.write(0, &[3]), None, "step 4 was before");
        sums.confirmed(7, 5);
        sums.begin();
        assert_eq!(sums.write(0, &[3]), slot(0));
    }
}
