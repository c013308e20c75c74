//! A replica in a GPU's memory (**REP-1**): the committed state, and the one before or the next.

use std::collections::BTreeMap;

use cudarc::driver::DriverError;
use rayon::prelude::*;
use tally_numerics::digest::Digest;
use tally_numerics::state::State;
use tally_numerics::update::examples::{ELEMENTS, Example, examples};
use tally_numerics::update::rule::{KernelRule, MAX_MOMENTS};
use tally_numerics::update::{ElementUpdate, Update};

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

/// Parameters and moments, flat.
#[derive(Debug)]
struct Half {
    parameters: Memory,
    moments: Vec<Memory>,
}

impl Half {
    /// Zeros.
    fn new(device: &Device, length: usize, moments: usize) -> Outcome<Self> {
        let zeros = || -> Outcome<Memory> {
            let memory = device.memory::<f32>(length)?;
            device.clear(memory.start(), 4 * length)?;
            Ok(memory)
        };
        let parameters = zeros()?;
        Ok(Self { parameters, moments: (0..moments).map(|_| zeros()).collect::<Outcome<_>>()? })
    }

    fn vectors(&self) -> impl Iterator<Item = &Memory> {
        std::iter::once(&self.parameters).chain(&self.moments)
    }
}

/// The committed state and a second one.
#[derive(Debug)]
pub struct DeviceState {
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

impl DeviceState {
    /// Zeros, with one moment.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(device: &Device, length: usize) -> Outcome<Self> {
        Ok(Self {
            length,
            halves: [Half::new(device, length, 1)?, Half::new(device, length, 1)?],
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
    pub fn load(&mut self, device: &Device, state: &State) -> Outcome<()> {
        (self.holds_before, self.holds_next) = (false, false);
        self.stretches.clear();
        let moments = state.moments.len();
        for half in &mut self.halves {
            if half.moments.len() != moments {
                *half = Half::new(device, self.length, moments)?;
            }
        }
        for (values, to) in state.vectors().zip(self.halves[self.committed].vectors()) {
            self.way_down.write(values.len())?.copy_from_slice(values);
            device.upload(&device.compute, &mut self.way_down, 4 * values.len(), to.start())?;
        }
        Ok(())
    }

    /// The committed state, read back.
    ///
    /// # Errors
    /// As the driver says.
    pub fn read(&mut self, device: &Device) -> Outcome<State> {
        self.read_half(device, self.committed)
    }

    /// The step before, while it is there.
    ///
    /// # Errors
    /// As the driver says.
    pub fn before(&mut self, device: &Device) -> Outcome<Option<State>> {
        if !self.holds_before {
            return Ok(None);
        }
        self.read_half(device, 1 - self.committed).map(Some)
    }

    fn read_half(&mut self, device: &Device, which: usize) -> Outcome<State> {
        let Self { length, halves, way_down, .. } = self;
        let mut read = |from: &Memory| -> Outcome<Vec<f32>> {
            device.download(&device.compute, from.start(), 4 * *length, way_down)?;
            Ok(way_down.read(*length)?.to_vec())
        };
        let Half { parameters, moments } = &halves[which];
        let parameters = read(parameters)?;
        Ok(State { parameters, moments: moments.iter().map(read).collect::<Outcome<_>>()? })
    }

    /// Has the stretch of the sum that starts at `first` brought up, and the update done there, into the second state.
    ///
    /// # Errors
    /// As the driver says.
    ///
    /// # Panics
    /// If the stretch reaches past the end, or there are thousands of them.
    pub fn apply(&mut self, device: &Device, update: &Update, first: usize, gradient: &[f32]) -> Outcome<()> {
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

        let (from, to) = (&self.halves[self.committed], &self.halves[1 - self.committed]);
        for (part, ElementUpdate { rule, scale, limit }) in update.parts(first..first + length) {
            let (first, length) = (first + part.start, part.len());
            let at = |memory: &Memory| Value::from(memory.start().after::<f32>(first));
            // There is room for three moments.
            let vectors = |half: &Half| {
                let places: Vec<Value> = half.vectors().map(at).collect();
                places.into_iter().chain(std::iter::repeat(Value::Null)).take(1 + MAX_MOMENTS)
            };
            let KernelRule { formula, switches, numbers } = rule.into();
            let values: Vec<Value> = std::iter::once(Value::from(self.sum.start().after::<f32>(first)))
                .chain(vectors(from))
                .chain(vectors(to))
                .chain(values![digest, first, length, formula as usize, switches as usize, scale, limit])
                .chain(numbers.map(Value::from))
                .collect();
            let blocks = length.div_ceil(THREADS).min(BLOCKS);
            device.timed(|| device.launch("update", [blocks, 1], THREADS, 0, &values))?;
        }
        Ok(())
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

/// Checks that updates by every rule have the host's bits (**REP-1**), in two stretches.
///
/// # Errors
/// Says which does not, or what the driver said.
pub fn check(device: &Device) -> Result<(), String> {
    let said = |error: DriverError| error.to_string();
    let mut on_device = DeviceState::new(device, ELEMENTS).map_err(said)?;
    for Example { name, update, before, gradient, after, digest } in examples() {
        on_device.load(device, &before).map_err(said)?;
        for stretch in [600..ELEMENTS, 0..600] {
            on_device.apply(device, &update, stretch.start, &gradient[stretch.clone()]).map_err(said)?;
        }
        let found = on_device.finish(device)?;
        on_device.commit();
        if found != digest || on_device.read(device).map_err(said)? != after {
            return Err(format!("an update by {name} has digest {found} where the host's has {digest}"));
        }
    }
    Ok(())
}
