//! A replica in a GPU's memory (**REP-1**): the committed state, and the one before or the next.

use std::collections::BTreeMap;

use rayon::prelude::*;
use tally_numerics::digest::Digest;
use tally_numerics::update::Update;

use super::COPIED;
use super::device::{Device, Memory, Outcome, Pinned, Place, Value, values};
use tally_worker::engine::host_replica::check_stretches;

/// Threads of a block, and the most blocks of an update.
const THREADS: usize = 256;
const BLOCKS: usize = 256;
/// The most stretches of a sum: a digest is kept for each.
const STRETCHES: usize = 4096;
/// Stretches on their way up at once.
const AT_ONCE: usize = 4;

/// Parameters and momentum in the host's memory.
pub type Read = (Vec<f32>, Vec<f32>);

/// Parameters and momentum, flat.
#[derive(Debug)]
struct Half {
    parameters: Memory,
    momentum: Memory,
}

/// The committed state and a second one.
#[derive(Debug)]
pub struct State {
    length: usize,
    halves: [Half; 2],
    committed: usize,
    /// The second one is the step before.
    holds_before: bool,
    /// The second one is the next step.
    holds_next: bool,
    /// The sum, as it comes.
    sum: Memory,
    /// A digest for each stretch.
    digests: Memory,
    /// The lengths of the stretches by their first elements, and which digest is theirs.
    stretches: BTreeMap<usize, (usize, usize)>,
    ways_up: Vec<Pinned>,
    next_way: usize,
    way_down: Pinned,
}

impl State {
    /// Zeros.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(device: &Device, length: usize) -> Outcome<Self> {
        let half = || -> Outcome<Half> {
            let (parameters, momentum) = (device.memory::<f32>(length)?, device.memory::<f32>(length)?);
            device.clear(parameters.start(), 4 * length)?;
            device.clear(momentum.start(), 4 * length)?;
            Ok(Half { parameters, momentum })
        };
        Ok(Self {
            length,
            halves: [half()?, half()?],
            committed: 0,
            holds_before: false,
            holds_next: false,
            sum: device.memory::<f32>(length)?,
            digests: device.memory::<u64>(STRETCHES)?,
            stretches: BTreeMap::new(),
            ways_up: Vec::new(),
            next_way: 0,
            way_down: device.pinned(4 * length)?,
        })
    }

    /// The committed parameters.
    #[must_use]
    pub fn parameters(&self) -> Place {
        self.halves[self.committed].parameters.start()
    }

    /// Takes over a committed state.
    ///
    /// # Errors
    /// As the driver says.
    pub fn load(&mut self, device: &Device, parameters: &[f32], momentum: &[f32]) -> Outcome<()> {
        (self.holds_before, self.holds_next) = (false, false);
        self.stretches.clear();
        let half = &self.halves[self.committed];
        for (values, to) in [(parameters, &half.parameters), (momentum, &half.momentum)] {
            self.way_down.write(values.len())?.copy_from_slice(values);
            device.upload(&device.compute, &mut self.way_down, 4 * values.len(), to.start())?;
        }
        Ok(())
    }

    /// The committed state, read back.
    ///
    /// # Errors
    /// As the driver says.
    pub fn read(&mut self, device: &Device) -> Outcome<Read> {
        self.read_half(device, self.committed)
    }

    /// The step before, while it is there.
    ///
    /// # Errors
    /// As the driver says.
    pub fn before(&mut self, device: &Device) -> Outcome<Option<Read>> {
        if !self.holds_before {
            return Ok(None);
        }
        self.read_half(device, 1 - self.committed).map(Some)
    }

    fn read_half(&mut self, device: &Device, which: usize) -> Outcome<Read> {
        let Self { length, halves, way_down, .. } = self;
        let mut read = |from: &Memory| -> Outcome<Vec<f32>> {
            device.download(&device.compute, from.start(), 4 * *length, way_down)?;
            Ok(way_down.read(*length)?.to_vec())
        };
        Ok((read(&halves[which].parameters)?, read(&halves[which].momentum)?))
    }

    /// Has the stretch of the sum that starts at `first` brought up, and the update done there, into the second state.
    ///
    /// # Errors
    /// As the driver says.
    ///
    /// # Panics
    /// If the stretch reaches past the end, or there are thousands of them.
    pub fn apply(&mut self, device: &Device, update: Update, first: usize, gradient: &[f32]) -> Outcome<()> {
        (self.holds_before, self.holds_next) = (false, false);
        let length = gradient.len();
        assert!(first + length <= self.length, "a stretch of the sum is within the replica");
        let next = self.stretches.len();
        // Another attempt's takes the place of an aborted one's.
        let entry = self.stretches.entry(first).or_insert((0, next));
        entry.0 = length;
        let digest = self.digests.start().after::<u64>(entry.1);
        assert!(entry.1 < STRETCHES, "a sum comes in chunks");
        device.clear(digest, size_of::<u64>())?;

        let way = self.next_way;
        if self.ways_up.len() <= way {
            self.ways_up.push(device.pinned(4 * length)?);
        } else if self.ways_up[way].bytes() < 4 * length {
            self.ways_up[way] = device.pinned(4 * length)?;
        }
        self.next_way = (way + 1) % AT_ONCE;
        let up = &mut self.ways_up[way];
        let pieces = up.write::<f32>(length)?.par_chunks_mut(COPIED).zip(gradient.par_chunks(COPIED));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        let sum = self.sum.start().after::<f32>(first);
        device.upload(&device.compute, up, 4 * length, sum)?;

        let at = |memory: &Memory| Value::from(memory.start().after::<f32>(first));
        let (from, to) = (&self.halves[self.committed], &self.halves[1 - self.committed]);
        let Update { learning_rate, momentum, clip } = update;
        let states = [at(&from.parameters), at(&from.momentum), at(&to.parameters), at(&to.momentum)];
        let rest = values![digest, first, length, -learning_rate, momentum, clip];
        let values: Vec<Value> = [Value::from(sum)].into_iter().chain(states).chain(rest).collect();
        let blocks = length.div_ceil(THREADS).min(BLOCKS);
        device.timed(|| device.launch("update", [blocks, 1], THREADS, 0, &values))
    }

    /// Waits for the update and gives the second state's digest; zero if there is no update.
    ///
    /// # Errors
    /// If stretches are missing or overlap, or as the driver says.
    pub fn finish(&mut self, device: &Device) -> Result<Digest, String> {
        let stretches = std::mem::take(&mut self.stretches);
        if stretches.is_empty() {
            return Ok(Digest::default());
        }
        check_stretches(stretches.iter().map(|(&first, &(length, _))| (first, length)), self.length)?;
        let parts = self.digests(device, stretches.len()).map_err(|error| error.to_string())?;
        self.holds_next = true;
        Ok(parts.iter().fold(Digest::default(), |digest, &part| digest.and(Digest(part))))
    }

    fn digests(&mut self, device: &Device, stretches: usize) -> Outcome<Vec<u64>> {
        let bytes = stretches * size_of::<u64>();
        device.download(&device.compute, self.digests.start(), bytes, &mut self.way_down)?;
        Ok(self.way_down.read(stretches)?.to_vec())
    }

    /// Makes the second state, if it is finished, the committed one.
    pub fn commit(&mut self) {
        if self.holds_next {
            self.committed = 1 - self.committed;
            (self.holds_before, self.holds_next) = (true, false);
        }
    }
}
