//! Samples on their way to a GPU and on it: as bytes, which the kernels normalise as they read them.

use cudarc::driver::CudaEvent;

use super::device::{Device, Memory, Outcome, Pinned, Place};
use crate::data::{ITEM, PIXELS, Samples};

/// Leaves that wait on the device for their step.
const MOST_AHEAD: usize = 64;

/// The samples of a pass.
#[derive(Debug)]
pub struct Inputs {
    images: Memory,
    numbers: Memory,
    labels: Memory,
}

/// Samples that were brought up ahead of their step.
#[derive(Debug, Default)]
pub struct Ahead {
    slots: Vec<Slot>,
    /// The last one that was overwritten.
    next: usize,
}

/// Room for a leaf on both sides of the bus.
#[derive(Debug)]
struct Slot {
    /// Whose samples are in it; none if they were taken.
    ids: Vec<u32>,
    pinned: Pinned,
    memory: Memory,
    /// When they are on the device.
    there: CudaEvent,
    /// When they were taken, and the memory may be written again.
    taken: CudaEvent,
}

impl Inputs {
    /// Room for so many samples.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(device: &Device, samples: usize) -> Outcome<Self> {
        Ok(Self {
            images: device.memory::<u8>(samples * PIXELS)?,
            numbers: device.memory::<u8>(samples)?,
            labels: device.memory::<u8>(samples)?,
        })
    }

    /// Pixels `(sample, 28, 28)`, as bytes.
    #[must_use]
    pub fn images(&self) -> Place {
        self.images.start()
    }

    /// The numbers that go with them.
    #[must_use]
    pub fn numbers(&self) -> Place {
        self.numbers.start()
    }

    /// The digits they show.
    #[must_use]
    pub fn labels(&self) -> Place {
        self.labels.start()
    }
}

impl Ahead {
    /// Starts bringing a leaf up; nothing waits for it. What was brought up with the same ids is forgotten. Returns where it is kept.
    ///
    /// # Errors
    /// As the driver says.
    pub fn bring(&mut self, device: &Device, samples: &Samples) -> Outcome<usize> {
        let bytes = samples.len() * ITEM;
        self.slots.iter_mut().filter(|slot| slot.ids == samples.ids()).for_each(|slot| slot.ids.clear());
        let index = match self.slots.iter().position(|slot| slot.ids.is_empty()) {
            Some(free) => free,
            None if self.slots.len() < MOST_AHEAD => self.slots.len(),
            None => {
                self.next = (self.next + 1) % MOST_AHEAD;
                self.next
            }
        };
        if self.slots.get(index).is_none_or(|slot| slot.pinned.bytes() < bytes) {
            let slot = Slot::new(device, bytes)?;
            if index < self.slots.len() {
                self.slots[index] = slot;
            } else {
                self.slots.push(slot);
            }
        }
        let Slot { ids, pinned, memory, there, taken } = &mut self.slots[index];
        ids.clear();
        let (pixels, rest) = pinned.write::<u8>(bytes)?.split_at_mut(samples.len() * PIXELS);
        let (numbers, labels) = rest.split_at_mut(samples.len());
        pixels.copy_from_slice(samples.pixels());
        numbers.copy_from_slice(samples.numbers());
        labels.copy_from_slice(samples.labels());
        device.up.wait(taken)?;
        device.upload(&device.up, pinned, bytes, memory.start())?;
        there.record(&device.up)?;
        ids.extend_from_slice(samples.ids());
        Ok(index)
    }

    /// Forgets what was brought up: another run may have other samples of the same ids.
    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.ids.clear());
    }

    /// Puts `count` of a leaf's samples from number `first` on where a pass has its sample `at`. The leaf's last ones free its room.
    ///
    /// # Errors
    /// As the driver says.
    pub fn take(
        &mut self,
        device: &Device,
        samples: &Samples,
        (first, count): (usize, usize),
        inputs: &Inputs,
        at: usize,
    ) -> Outcome<()> {
        let there = |slots: &[Slot]| slots.iter().position(|slot| slot.ids == samples.ids());
        let index = match there(&self.slots) {
            Some(index) => index,
            None => self.bring(device, samples)?,
        };
        let slot = &mut self.slots[index];
        device.compute.wait(&slot.there)?;
        let (pixels, all) = (slot.memory.start(), samples.len());
        let (numbers, labels) = (pixels.after::<u8>(all * PIXELS), pixels.after::<u8>(all * (PIXELS + 1)));
        for (from, to, each) in
            [(pixels, &inputs.images, PIXELS), (numbers, &inputs.numbers, 1), (labels, &inputs.labels, 1)]
        {
            device.copy(from.after::<u8>(first * each), count * each, to.start().after::<u8>(at * each))?;
        }
        slot.taken.record(&device.compute)?;
        if first + count == all {
            slot.ids.clear();
        }
        Ok(())
    }
}

impl Slot {
    fn new(device: &Device, bytes: usize) -> Outcome<Self> {
        let (pinned, memory) = (device.pinned(bytes)?, device.memory::<u8>(bytes)?);
        let (there, taken) = (device.event()?, device.event()?);
        // The memory is there for other streams once the computing stream has it.
        taken.record(&device.compute)?;
        Ok(Self { ids: Vec::new(), pinned, memory, there, taken })
    }
}
