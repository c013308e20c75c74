//! A Burn program with one fault, which its option names: for tests of what Tally finds.

#![forbid(unsafe_code)]
#![allow(clippy::panic)]

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::LrScheduler;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::nn::loss::{MseLoss, Reduction};
use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, RegressionOutput, TrainOutput, TrainStep};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tally::ParameterGroup;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
enum Fault {
    None,
    /// The batcher draws from a generator that nobody seeded.
    UnseededBatcher,
    /// Features are added in the order of a HashMap.
    HashMapOrder,
    /// A parameter that the loss does not depend on.
    UnusedParameter,
    /// An item that loses a field on its way.
    LossyItem,
    /// The batcher remembers the last batch.
    StatefulBatcher,
    /// The loss of a sample depends on the others of its batch.
    Neighbours,
    /// The dropout mask is drawn from the process's own number.
    WorkersMask,
    /// A running mean that is kept beside the module, and so is lost when another worker takes over.
    OwnStatistics,
    /// The data is another one on every process.
    OtherData,
    /// The batcher panics at a sample.
    Panic,
    /// The loss is NaN from the first step on.
    Nan,
    /// A metric divides by nothing.
    ZeroDenominator,
    /// There is no sample.
    EmptyData,
    /// There is nothing to train.
    Frozen,
    /// Burn's clipping of each tensor's norm.
    ClipEachTensor,
    /// A group that no parameter belongs to.
    EmptyGroup,
    /// Two groups with the same parameter.
    TwoGroups,
    /// No fault: a schedule of Burn's.
    Schedule,
    /// A schedule that is another one in every process.
    OtherSchedule,
    /// A schedule that goes below zero.
    NegativeRate,
    /// A schedule that is said to be the program's, and is not there.
    NoSchedule,
}

#[derive(Module, Debug)]
struct Model<B: Backend> {
    layer: Linear<B>,
    unused: Option<Linear<B>>,
    nan: bool,
    neighbours: bool,
    workers_mask: bool,
    own_statistics: bool,
}

/// The bits of a running mean that is not a part of the model.
static RUNNING_MEAN: AtomicU32 = AtomicU32::new(0);

impl<B: Backend> Model<B> {
    fn forward(&self, batch: Batch<B>) -> RegressionOutput<B> {
        let mut x = if self.neighbours { batch.x.clone() - batch.x.mean_dim(0) } else { batch.x };
        if self.workers_mask {
            let hash = std::process::id().wrapping_mul(2_654_435_761);
            let mask: Vec<f32> = (0..8).map(|bit| f32::from((hash >> (8 + bit)) as u8 & 1)).collect();
            x = x.clone() * Tensor::<B, 1>::from_floats(mask.as_slice(), &x.device()).unsqueeze();
        }
        if self.own_statistics {
            let mean = f32::from_bits(RUNNING_MEAN.load(Ordering::Relaxed));
            let own: f32 = x.clone().mean().into_scalar().elem();
            RUNNING_MEAN.store((0.9 * mean + 0.1 * own).to_bits(), Ordering::Relaxed);
            x = x - mean;
        }
        let output = self.layer.forward(x);
        let mut loss = MseLoss::new().forward(output.clone(), batch.y.clone(), Reduction::Mean);
        if self.nan {
            loss = loss * f32::NAN;
        }
        RegressionOutput::new(loss, output, batch.y)
    }
}

impl<B: AutodiffBackend> TrainStep for Model<B> {
    type Input = Batch<B>;
    type Output = RegressionOutput<B>;

    fn step(&self, batch: Batch<B>) -> TrainOutput<RegressionOutput<B>> {
        let item = self.forward(batch);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Model<B> {
    type Input = Batch<B>;
    type Output = RegressionOutput<B>;

    fn step(&self, batch: Batch<B>) -> RegressionOutput<B> {
        self.forward(batch)
    }
}

#[derive(Clone, Debug)]
struct Batch<B: Backend> {
    x: Tensor<B, 2>,
    y: Tensor<B, 2>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    x: [f32; 8],
    y: f32,
    #[serde(serialize_with = "loses")]
    note: i16,
}

/// Writes another number for each that is below 0.
fn loses<S: serde::Serializer>(note: &i16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i16(note.saturating_mul(2))
}

struct Stack {
    fault: Fault,
    panic_at: f32,
    calls: AtomicU32,
}

/// A number that differs from process to process, and from call to call.
fn unseeded() -> f32 {
    let hash = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 1u8);
    (hash % 1000) as f32 / 1000.0
}

impl<B: Backend> Batcher<B, Item, Batch<B>> for Stack {
    fn batch(&self, items: Vec<Item>, device: &B::Device) -> Batch<B> {
        let mut x = Vec::new();
        for item in &items {
            if self.fault == Fault::Panic && item.y == self.panic_at {
                panic!("this sample cannot be read");
            }
            let mut row = item.x;
            match self.fault {
                Fault::UnseededBatcher => row[0] += unseeded(),
                Fault::StatefulBatcher => row[0] += self.calls.fetch_add(1, Ordering::Relaxed) as f32,
                Fault::HashMapOrder => {
                    let all: HashMap<usize, f32> = row.iter().map(|x| x * 1.1).enumerate().collect();
                    let order: HashSet<usize> = all.keys().copied().collect();
                    row[0] = order.iter().map(|index| all[index] * 1e4).fold(0.0, |sum, x| sum * 0.7 + x);
                }
                _ => {}
            }
            x.extend(row);
        }
        let y: Vec<f32> = items.iter().map(|item| item.y).collect();
        Batch {
            x: Tensor::from_data(TensorData::new(x, [items.len(), 8]), device),
            y: Tensor::from_data(TensorData::new(y, [items.len(), 1]), device),
        }
    }
}

fn items(count: usize, shift: f32, note: i16) -> InMemDataset<Item> {
    let item = |index: usize| {
        let x: [f32; 8] = std::array::from_fn(|k| ((index * 7 + k * 3) % 11) as f32 / 11.0 + shift);
        Item { x, y: index as f32 / 64.0, note }
    };
    InMemDataset::new((0..count).map(item).collect())
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// The fault
    #[arg(long, value_enum, default_value_t = Fault::None)]
    fault: Fault,

    /// Samples to train with
    #[arg(long, default_value_t = 64)]
    samples: usize,

    /// The sample at which the batcher panics
    #[arg(long, default_value_t = 40)]
    panic_at: usize,
}

/// A rate that falls below zero.
#[derive(Clone)]
struct Falling(f64);

impl LrScheduler for Falling {
    type Record<B: Backend> = ();

    fn step(&mut self) -> f64 {
        self.0 -= 0.07;
        self.0
    }

    fn to_record<B: Backend>(&self) -> Self::Record<B> {}

    fn load_record<B: Backend>(self, (): Self::Record<B>) -> Self {
        self
    }
}

struct Faulty;

impl tally::Program for Faulty {
    const NAME: &'static str = "faulty";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        let fault = args.fault;
        let mut model = Model::<B> {
            layer: LinearConfig::new(8, 1).init(&device),
            unused: (fault == Fault::UnusedParameter).then(|| LinearConfig::new(2, 2).init(&device)),
            nan: fault == Fault::Nan,
            neighbours: fault == Fault::Neighbours,
            workers_mask: fault == Fault::WorkersMask,
            own_statistics: fault == Fault::OwnStatistics,
        };
        if fault == Fault::Frozen {
            model = model.no_grad();
        }
        let count = if fault == Fault::EmptyData { 0 } else { args.samples };
        let note = i16::from(fault == Fault::LossyItem);
        let open = move || Ok(items(count, if fault == Fault::OtherData { unseeded() } else { 0.0 }, note));
        let zero = fault == Fault::ZeroDenominator;
        let stack = Stack { fault, panic_at: args.panic_at as f32 / 64.0, calls: AtomicU32::new(0) };
        let mut job = tally::job(model, stack);
        match fault {
            Fault::ClipEachTensor => {
                let clipping = GradientClippingConfig::Norm(1.0);
                job = job.optimizer(SgdConfig::new().with_gradient_clipping(Some(clipping)));
            }
            Fault::EmptyGroup => {
                job = job.group(ParameterGroup::new("heads", |name, _| name.starts_with("head")))
            }
            Fault::TwoGroups => {
                let biases = ParameterGroup::new("biases", |name, _| name.ends_with("bias"));
                job = job.group(biases.weight_decay(0.0));
                job = job.group(ParameterGroup::new("all", |_, _| true).rate_factor(0.5));
            }
            Fault::Schedule | Fault::OtherSchedule => {
                let other = if fault == Fault::OtherSchedule { f64::from(unseeded()) } else { 0.0 };
                job = job.lr_scheduler(LinearLrSchedulerConfig::new(0.1 + 0.1 * other, 0.01, 20).init()?);
            }
            Fault::NoSchedule => job = job.learning_rate(0.1, tally::LrSchedule::Program),
            Fault::NegativeRate => job = job.lr_scheduler(Falling(0.1)),
            _ => {}
        }
        Ok(job
            .train(open)
            .error_metric("nearness", move |_| tally::Ratio {
                numerator: 1.0,
                denominator: if zero { 0.0 } else { 1.0 },
            })
            .batch_size(16)
            .epochs(3))
    }
}

fn main() -> ExitCode {
    tally::main::<Faulty>()
}
