//! A pass over samples, forward and back: which kernels run, on what.
//!
//! Activations are NHWC. They are rounded to the convolutions' precision when they are stored, as float32 or in fewer bits
//! ([`Variant::half`]). Values that depend on one sample only are computed for all samples of the pass at once. Gradients by
//! parameters are summed for each stretch of a leaf, then gathered in the leaf's slot in the manifest's order, last layers
//! first. They may have a stream of their own ([`Variant::streams`]): a layer's gradient by its weights and the one by its inputs
//! need the same gradient by its results, and neither needs the other.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use cudarc::driver::CudaEvent;
use tally_numerics::manifest::Manifest;

use super::device::{Device, Memory, Outcome, Pinned, Place, Value, values};
use super::inputs::Inputs;
use super::layers::{
    CONVOLUTIONS, Convolution, FIRST_STRETCH, HEADS_GROUP, HEADS_STRETCH, LOGITS_GROUP, RECORD, Variant,
};
use super::plan::{Pass, Table};
use super::program::{backward, by_weights, forward};
use crate::network::LabelLoss;
use crate::network::burn::inputs::NORMALISED;
use crate::network::outputs::OUTPUTS;

/// Threads of the blocks of most kernels.
const THREADS: usize = 256;
/// Inputs of the last convolution, and its results.
const FLAT: usize = 9 * 1024;
const DIGITS: usize = 10;

/// Elements of an activation, for each sample.
const CONV1: usize = 28 * 28 * 32;
const CONV2: usize = 28 * 28 * 64;
const POOL1: usize = 14 * 14 * 64;
const CONV3: usize = 14 * 14 * 128;
const POOL2: usize = 7 * 7 * 256;
const CONV5: usize = 5 * 5 * 512;

/// Parts of the manifest in its order, each with the tensors from one to another: what is read back at once, while the next
/// is computed.
pub const PARTS: [(&str, &str); 5] = [
    ("sum3.weight", "conv7.bias"),
    ("conv6.weight", "conv6.bias"),
    ("conv5.weight", "conv5.bias"),
    ("conv4.weight", "conv4.bias"),
    ("conv3.weight", "conv1.bias"),
];

/// Where a tensor lies among the parameters.
#[derive(Debug)]
struct Places(HashMap<String, usize>);

/// A convolution's weights as the kernels read them.
#[derive(Debug)]
struct Packed {
    forward: Memory,
    backward: Memory,
}

/// Room for a number of samples.
#[derive(Debug)]
struct Activations {
    samples: usize,
    inputs: Inputs,
    conv1: Memory,
    pool1: Memory,
    places1: Memory,
    conv3: Memory,
    pool2: Memory,
    places2: Memory,
    conv5: Memory,
    conv6: Memory,
    /// What goes into a pool, and the gradient by it.
    wide: Memory,
    /// Gradients by activations, in turn.
    back: [Memory; 2],
    records: Memory,
    gradients: Memory,
    answers: Memory,
}

/// The reference network on a GPU.
#[derive(Debug)]
pub struct Network {
    length: usize,
    shared: usize,
    how: Variant,
    places: Places,
    /// Of the five convolutions between the first and the last.
    packed: Vec<Packed>,
    last: Memory,
    /// A pixel's value by its byte.
    values: Memory,
    room: Activations,
    /// Sums of stretches: of a tensor of weights, and of one of biases.
    parts: [Grown; 2],
    tables: Grown,
    table: Pinned,
}

/// Memory that grows when more is needed.
#[derive(Debug)]
struct Grown {
    memory: Memory,
    bytes: usize,
}

/// How a backward pass starts.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    /// The digit's loss.
    pub loss: LabelLoss,
    /// What losses are multiplied by.
    pub scale: f32,
}

/// A table on the device.
#[derive(Clone, Copy, Debug)]
struct OnDevice {
    stretches: Place,
    count: usize,
    leaves: Place,
    leaf_count: usize,
}

/// A pass's tables on the device.
#[derive(Debug)]
pub struct Tables {
    by_longest: HashMap<usize, OnDevice>,
    nodes: Vec<(Place, usize)>,
}

impl Network {
    /// A network without weights yet, for this variant of the kernels and processors with so many bytes of shared memory.
    ///
    /// # Errors
    /// As the driver says.
    pub fn new(device: &Device, manifest: &Manifest, how: Variant, shared: usize) -> Outcome<Self> {
        let tensors = manifest.tensors().iter().enumerate();
        let places = tensors.map(|(index, tensor)| (tensor.name.clone(), manifest.range(index).start));
        let packed = CONVOLUTIONS.iter().map(|layer| {
            let packed = || device.memory::<u8>(layer.weights() * how.stored());
            Ok(Packed { forward: packed()?, backward: packed()? })
        });
        let values = device.memory::<f32>(NORMALISED.len())?;
        let mut table = device.pinned(4 * NORMALISED.len())?;
        table.write::<f32>(NORMALISED.len())?.copy_from_slice(&*NORMALISED);
        device.upload(&device.compute, &mut table, 4 * NORMALISED.len(), values.start())?;
        Ok(Self {
            length: manifest.len(),
            shared,
            how,
            places: Places(places.collect()),
            packed: packed.collect::<Outcome<_>>()?,
            last: device.memory::<f32>(DIGITS * FLAT)?,
            values,
            room: Activations::new(device, how, 0)?,
            parts: [Grown::new(device)?, Grown::new(device)?],
            tables: Grown::new(device)?,
            table,
        })
    }

    /// Packs the weights of `parameters`.
    ///
    /// # Errors
    /// As the driver says.
    pub fn pack(&self, device: &Device, parameters: Place) -> Outcome<()> {
        for (layer, packed) in CONVOLUTIONS.iter().zip(&self.packed) {
            let Convolution { inputs, outputs, .. } = *layer;
            let weights = self.places.weight(layer.name, parameters);
            let values = values![weights, &packed.forward, &packed.backward, inputs, outputs];
            device.launch("pack_both", [inputs / 32, outputs / 32], THREADS, 0, &values)?;
        }
        let (weights, length) = (self.places.weight("conv7", parameters), DIGITS * FLAT);
        let values = values![weights, &self.last, FLAT / 9, length];
        device.launch("pack_exact", [length.div_ceil(THREADS), 1], THREADS, 0, &values)
    }

    /// Room for so many samples, and where they go.
    ///
    /// # Errors
    /// As the driver says.
    pub fn inputs(&mut self, device: &Device, samples: usize) -> Outcome<&Inputs> {
        if self.room.samples < samples {
            // What there was goes first: there may not be room for both.
            self.room = Activations::new(device, self.how, 0)?;
            self.room = Activations::new(device, self.how, samples)?;
        }
        Ok(&self.room.inputs)
    }

    /// Gives back what depends on the number of samples.
    ///
    /// # Errors
    /// As the driver says.
    pub fn shrink(&mut self, device: &Device) -> Outcome<()> {
        self.room = Activations::new(device, self.how, 0)?;
        self.parts = [Grown::new(device)?, Grown::new(device)?];
        Ok(())
    }

    /// The answers of the samples that were put into [`inputs`](Self::inputs), 12 each, and how the way back starts, if there is one.
    ///
    /// # Errors
    /// As the driver says.
    pub fn forward(
        &self,
        device: &Device,
        parameters: Place,
        samples: usize,
        back: Option<Back>,
    ) -> Outcome<Place> {
        let room = &self.room;
        let (weights, bias) =
            (self.places.weight("conv1", parameters), self.places.bias("conv1", parameters));
        let values = values![room.inputs.images(), &self.values, weights, bias, &room.conv1];
        device.launch("first_forward", [samples, 1], THREADS, 0, &values)?;
        let pool = |from: &Memory, to: &Memory, places: &Memory, side: usize, channels: usize| {
            let fours = samples * side * side * channels / 4;
            let values = values![from, to, places, side, channels, fours];
            device.launch("pool_forward", [fours.div_ceil(THREADS), 1], THREADS, 0, &values)
        };
        let convolve = |index: usize, from: &Memory, to: &Memory| {
            let layer = &CONVOLUTIONS[index];
            let bias = self.places.bias(layer.name, parameters);
            self.convolve(
                device,
                layer,
                &forward(layer),
                (from, &self.packed[index].forward, bias, to),
                samples,
            )
        };
        convolve(0, &room.conv1, &room.wide)?;
        pool(&room.wide, &room.pool1, &room.places1, 14, 64)?;
        convolve(1, &room.pool1, &room.conv3)?;
        convolve(2, &room.conv3, &room.wide)?;
        pool(&room.wide, &room.pool2, &room.places2, 7, 256)?;
        convolve(3, &room.pool2, &room.conv5)?;
        convolve(4, &room.conv5, &room.conv6)?;
        let bias = self.places.bias("conv7", parameters);
        let values = values![&room.conv6, &self.last, bias, &room.records, samples];
        device.launch("logits_forward", [samples.div_ceil(LOGITS_GROUP), 1], THREADS, 0, &values)?;
        let loss = back.map_or(0, |back| usize::from(back.loss == LabelLoss::CrossEntropy));
        let scale = back.map_or(0.0, |back| back.scale);
        let (numbers, labels) = (room.inputs.numbers(), room.inputs.labels());
        let values = values![
            parameters,
            numbers,
            labels,
            &room.records,
            &room.gradients,
            &room.answers,
            samples,
            loss,
            scale,
            usize::from(back.is_some()),
        ];
        device.launch("heads", [samples.div_ceil(HEADS_GROUP), 1], 128, 0, &values)?;
        Ok(room.answers.start())
    }

    /// One convolution over all samples.
    fn convolve(
        &self,
        device: &Device,
        layer: &Convolution,
        kernel: &str,
        (from, weights, beside, to): (&Memory, &Memory, Place, &Memory),
        samples: usize,
    ) -> Outcome<()> {
        let shape = layer.shape(self.how);
        let pixels = samples * layer.side_out() * layer.side_out();
        let grid = [pixels.div_ceil(shape.height()), layer.outputs / shape.width()];
        let values = values![from, weights, beside, to, samples];
        device.launch(kernel, grid, shape.threads(), shape.shared(self.shared), &values)
    }

    /// Brings a pass's tables up; leaves are `rounded` when they are whole.
    ///
    /// # Errors
    /// As the driver says.
    pub fn tables(&mut self, device: &Device, pass: &Pass, rounded: bool) -> Outcome<Tables> {
        // A stretch's length, and the elements of the largest weights and biases that are summed by such.
        let layers = CONVOLUTIONS.iter().map(|layer| (layer.stretch, layer.weights(), layer.outputs));
        let ends = [(FIRST_STRETCH, 9 * 32, 32), (HEADS_STRETCH, DIGITS * FLAT, DIGITS)];
        let mut numbers: Vec<i32> = Vec::new();
        let mut add = |more: &[i32]| {
            numbers.extend_from_slice(more);
            numbers.len() - more.len()
        };
        let mut most = [0; 2];
        let mut at = HashMap::new();
        for (longest, weights, biases) in layers.chain(ends) {
            let table = Table::new(pass, longest, rounded);
            let count = table.stretches.len();
            most = [most[0].max(count * weights), most[1].max(count * biases)];
            let (stretches, leaves) = (add(table.stretches.as_flattened()), add(table.leaves.as_flattened()));
            at.insert(longest, (stretches, count, leaves, table.leaves.len()));
        }
        let nodes: Vec<(usize, usize)> = pass
            .nodes
            .iter()
            .map(|list| {
                let slots = list.iter().flat_map(|&(left, right)| [left, right]);
                let slots: Vec<i32> = slots.map(|slot| i32::try_from(slot).unwrap_or(i32::MAX)).collect();
                (add(&slots), list.len())
            })
            .collect();

        let bytes = 4 * numbers.len();
        if self.table.bytes() < bytes {
            self.table = device.pinned(bytes)?;
        }
        self.table.write::<i32>(numbers.len())?.copy_from_slice(&numbers);
        let start = self.tables.hold(device, bytes)?;
        device.upload(&device.compute, &mut self.table, bytes, start)?;
        for (parts, most) in self.parts.iter_mut().zip(most) {
            parts.hold(device, 4 * most)?;
        }
        let place = |first: usize| start.after::<i32>(first);
        let by_longest = at.into_iter().map(|(longest, (stretches, count, leaves, leaf_count))| {
            (longest, OnDevice { stretches: place(stretches), count, leaves: place(leaves), leaf_count })
        });
        Ok(Tables {
            by_longest: by_longest.collect(),
            nodes: nodes.into_iter().map(|(first, count)| (place(first), count)).collect(),
        })
    }

    /// The way back of a pass whose forward pass was given a start: gradients into `slots`, and `done` is called with each of
    /// [`PARTS`] when everything for it was given to the device.
    ///
    /// # Errors
    /// As the driver says, or as `done` does.
    pub fn backward(
        &self,
        device: &Device,
        samples: usize,
        tables: &Tables,
        slots: Place,
        mut done: impl FnMut(usize) -> Outcome<()>,
    ) -> Outcome<()> {
        let room = &self.room;
        let [one, two] = &room.back;
        let [sums, bias_sums] = self.parts.each_ref().map(|parts| &parts.memory);
        let back = Backward { network: self, device, samples, tables, slots, read: Cell::new(None) };

        // The dense layers and the last convolution.
        back.follow()?;
        let heads = self.places.0["conv7.weight"];
        let OnDevice { stretches, count, .. } = tables.by_longest[&HEADS_STRETCH];
        let values = values![&room.records, &room.gradients, stretches, sums];
        back.by_weights("heads_by_weights", [heads.div_ceil(THREADS), count], THREADS, 0, &values)?;
        back.gather(HEADS_STRETCH, sums, "sum3.weight", heads, 1, heads)?;
        let values = values![&room.gradients, &room.conv6, stretches, sums, bias_sums];
        back.by_weights("logits_by_weights", [FLAT / THREADS, count], THREADS, 0, &values)?;
        back.gather(HEADS_STRETCH, sums, "conv7.weight", FLAT / 9, 9, DIGITS * FLAT / 9)?;
        back.gather(HEADS_STRETCH, bias_sums, "conv7.bias", DIGITS, 1, DIGITS)?;
        let grid = [FLAT / THREADS, samples.div_ceil(HEADS_GROUP)];
        let values = values![&room.gradients, &self.last, &room.conv6, one, samples];
        device.launch("logits_backward", grid, THREADS, 0, &values)?;
        done(0)?;

        back.layer(4, one, &room.conv5, two)?;
        done(1)?;
        back.layer(3, two, &room.pool2, one)?;
        done(2)?;
        back.pool(one, &room.pool2, &room.places2, 7, 256)?;
        back.layer(2, &room.wide, &room.conv3, two)?;
        done(3)?;
        back.layer(1, two, &room.pool1, one)?;
        back.pool(one, &room.pool1, &room.places1, 14, 64)?;
        back.layer(0, &room.wide, &room.conv1, two)?;
        back.follow()?;
        let OnDevice { stretches, count, .. } = tables.by_longest[&FIRST_STRETCH];
        let values = values![two, room.inputs.images(), &self.values, stretches, sums, bias_sums];
        back.by_weights("first_by_weights", [count, 1], THREADS, 0, &values)?;
        back.gather(FIRST_STRETCH, sums, "conv1.weight", 1, 9, 32)?;
        back.gather(FIRST_STRETCH, bias_sums, "conv1.bias", 32, 1, 32)?;
        done(4)?;
        // The next pass overwrites what the weights' stream reads here.
        back.was_read()?;
        back.wait_for_reads()
    }

    /// Adds the nodes of the tree up that a pass completes, over a stretch of the manifest.
    ///
    /// # Errors
    /// As the driver says.
    pub fn add_nodes(
        &self,
        device: &Device,
        tables: &Tables,
        slots: Place,
        part: Range<usize>,
        rounded: bool,
    ) -> Outcome<()> {
        let at = slots.after::<f32>(part.start);
        for &(pairs, count) in &tables.nodes {
            let values = values![at, pairs, self.length as u64, part.len(), usize::from(rounded)];
            let grid = [part.len().div_ceil(THREADS), count];
            device.launch_in(&device.weights, "add_nodes", grid, THREADS, 0, &values)?;
        }
        Ok(())
    }
}

/// What the steps of a way back share.
struct Backward<'a> {
    network: &'a Network,
    device: &'a Device,
    samples: usize,
    tables: &'a Tables,
    slots: Place,
    /// The end of the weights' stream's last read of a gradient by results, if that stream is another one.
    read: Cell<Option<CudaEvent>>,
}

impl Backward<'_> {
    fn in_two_streams(&self) -> bool {
        self.network.how.streams
    }

    /// Has the weights' stream wait for all work that the computing stream was given.
    fn follow(&self) -> Outcome<()> {
        if !self.in_two_streams() {
            return Ok(());
        }
        let there = self.device.event()?;
        there.record(&self.device.compute)?;
        self.device.weights.wait(&there)
    }

    /// Records that the weights' stream has been given all readers of the gradient for which it waited last.
    fn was_read(&self) -> Outcome<()> {
        if self.in_two_streams() {
            let read = self.device.event()?;
            read.record(&self.device.weights)?;
            self.read.set(Some(read));
        }
        Ok(())
    }

    /// Has the computing stream wait for these readers, because it overwrites the gradients in turn.
    fn wait_for_reads(&self) -> Outcome<()> {
        self.read.take().map_or(Ok(()), |read| self.device.compute.wait(&read))
    }

    /// Gives a kernel to the weights' stream.
    fn by_weights(
        &self,
        kernel: &str,
        grid: [usize; 2],
        threads: usize,
        shared: usize,
        values: &[Value],
    ) -> Outcome<()> {
        self.device.launch_in(&self.device.weights, kernel, grid, threads, shared, values)
    }

    /// One of the convolutions between the first and the last: the gradients by its weights and biases, then the one by its
    /// `inputs`, through the ReLU whose results these are unless a pool made them of it.
    fn layer(&self, index: usize, by_results: &Memory, inputs: &Memory, by_inputs: &Memory) -> Outcome<()> {
        let Self { network, device, samples, tables, .. } = self;
        let layer = &CONVOLUTIONS[index];
        let [sums, bias_sums] = network.parts.each_ref().map(|parts| &parts.memory);
        let OnDevice { stretches, count, .. } = tables.by_longest[&layer.stretch];
        // The gradient by the inputs overwrites one that the layer after this one read.
        self.wait_for_reads()?;
        self.follow()?;
        let shape = layer.shape_by_weights(network.how);
        let blocks = layer.outputs / shape.height() * (9 * layer.inputs / shape.width());
        let shared = shape.shared(network.shared);
        let values = values![by_results, inputs, stretches, sums];
        self.by_weights(&by_weights(layer), [blocks, count], shape.threads(), shared, &values)?;
        let (weight, bias) = (format!("{}.weight", layer.name), format!("{}.bias", layer.name));
        self.gather(layer.stretch, sums, &weight, layer.inputs, 9, layer.outputs * layer.inputs)?;
        let area = layer.side_out() * layer.side_out();
        let values = values![by_results, stretches, bias_sums, area, layer.outputs];
        self.by_weights("sum_pixels", [layer.outputs / 32, count], THREADS, 0, &values)?;
        self.was_read()?;
        self.gather(layer.stretch, bias_sums, &bias, layer.outputs, 1, layer.outputs)?;
        let weights = &network.packed[index].backward;
        let operands = (by_results, weights, inputs.start(), by_inputs);
        network.convolve(device, &layer.backward(), &backward(layer), operands, *samples)
    }

    /// A pool, and the ReLU before it; its `results` are `side` high and wide. What it makes is the wide one.
    fn pool(
        &self,
        by_results: &Memory,
        results: &Memory,
        places: &Memory,
        side: usize,
        channels: usize,
    ) -> Outcome<()> {
        let fours = self.samples * side * side * channels / 4;
        let values = values![by_results, results, places, &self.network.room.wide, side, channels, fours];
        self.device.launch("pool_backward", [fours.div_ceil(THREADS), 1], THREADS, 0, &values)
    }

    /// A tensor's gradients from its stretches' sums.
    fn gather(
        &self,
        longest: usize,
        sums: &Memory,
        tensor: &str,
        inputs: usize,
        taps: usize,
        length: usize,
    ) -> Outcome<()> {
        let OnDevice { leaves, leaf_count, .. } = self.tables.by_longest[&longest];
        let to = self.slots.after::<f32>(self.network.places.0[tensor]);
        let values = values![sums, leaves, to, self.network.length as u64, inputs, taps, length];
        self.by_weights("gather", [length.div_ceil(32), leaf_count], 32 * taps, 0, &values)
    }
}

impl Places {
    fn weight(&self, layer: &str, parameters: Place) -> Place {
        parameters.after::<f32>(self.0[&format!("{layer}.weight")])
    }

    fn bias(&self, layer: &str, parameters: Place) -> Place {
        parameters.after::<f32>(self.0[&format!("{layer}.bias")])
    }
}

impl Grown {
    fn new(device: &Device) -> Outcome<Self> {
        Ok(Self { memory: device.memory::<u8>(0)?, bytes: 0 })
    }

    /// So many bytes, with anything in them.
    fn hold(&mut self, device: &Device, bytes: usize) -> Outcome<Place> {
        if self.bytes < bytes {
            // What there was goes first: there may not be room for both.
            *self = Self::new(device)?;
            (self.memory, self.bytes) = (device.memory::<u8>(bytes)?, bytes);
        }
        Ok(self.memory.start())
    }
}

impl Activations {
    fn new(device: &Device, how: Variant, samples: usize) -> Outcome<Self> {
        let floats = |each: usize| device.memory::<f32>(samples * each);
        let stored = |each: usize| device.memory::<u8>(samples * each * how.stored());
        let bytes = |each: usize| device.memory::<u8>(samples * each);
        Ok(Self {
            samples,
            inputs: Inputs::new(device, samples)?,
            conv1: stored(CONV1)?,
            pool1: stored(POOL1)?,
            places1: bytes(POOL1)?,
            conv3: stored(CONV3)?,
            pool2: stored(POOL2)?,
            places2: bytes(POOL2)?,
            conv5: stored(CONV5)?,
            conv6: stored(FLAT)?,
            wide: stored(CONV2)?,
            back: [stored(CONV1)?, stored(CONV1)?],
            records: floats(RECORD)?,
            gradients: floats(RECORD)?,
            answers: floats(OUTPUTS)?,
        })
    }
}
