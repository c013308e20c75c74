//! A Burn program whose items are stretches of a file, which may be far larger than memory: for measuring what shipped
//! and local data cost (`scripts/local-data.sh`).

#![forbid(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::nn::loss::{MseLoss, Reduction};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, RegressionOutput, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};

/// How many means of an item the model sees.
const FEATURES: usize = 8;

#[derive(Module, Debug)]
struct Model<B: Backend> {
    layer: Linear<B>,
}

impl<B: Backend> Model<B> {
    fn forward(&self, [x, y]: [Tensor<B, 2>; 2]) -> RegressionOutput<B> {
        let output = self.layer.forward(x);
        let loss = MseLoss::new().forward(output.clone(), y.clone(), Reduction::Mean);
        RegressionOutput::new(loss, output, y)
    }
}

impl<B: AutodiffBackend> TrainStep for Model<B> {
    type Input = [Tensor<B, 2>; 2];
    type Output = RegressionOutput<B>;

    fn step(&self, batch: Self::Input) -> TrainOutput<RegressionOutput<B>> {
        let item = self.forward(batch);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Model<B> {
    type Input = [Tensor<B, 2>; 2];
    type Output = RegressionOutput<B>;

    fn step(&self, batch: Self::Input) -> RegressionOutput<B> {
        self.forward(batch)
    }
}

/// Bytes of the file, and the number that is to be learnt from them.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    bytes: Vec<u8>,
    y: f32,
}

struct Means;

impl<B: Backend> Batcher<B, Item, [Tensor<B, 2>; 2]> for Means {
    fn batch(&self, items: Vec<Item>, device: &B::Device) -> [Tensor<B, 2>; 2] {
        let mean =
            |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>() as f32 / bytes.len() as f32;
        let means = |item: &Item| -> Vec<f32> {
            item.bytes
                .chunks(item.bytes.len().div_ceil(FEATURES))
                .map(mean)
                .chain([0.0; FEATURES])
                .take(FEATURES)
                .collect()
        };
        let x: Vec<f32> = items.iter().flat_map(means).collect();
        let y: Vec<f32> = items.iter().map(|item| item.y).collect();
        [
            Tensor::from_data(TensorData::new(x, [items.len(), FEATURES]), device),
            Tensor::from_data(TensorData::new(y, [items.len(), 1]), device),
        ]
    }
}

/// The first `len` items of a file.
struct Stretches {
    file: File,
    item_bytes: usize,
    len: usize,
}

impl Dataset<Item> for Stretches {
    fn get(&self, index: usize) -> Option<Item> {
        let mut bytes = vec![0; self.item_bytes];
        self.file.read_exact_at(&mut bytes, index as u64 * self.item_bytes as u64).ok()?;
        Some(Item { bytes, y: (index % 10) as f32 })
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// The file; the same path on each machine
    #[arg(long)]
    file: PathBuf,

    /// Bytes of an item
    #[arg(long, default_value = "150528")]
    item_bytes: NonZeroUsize,

    /// Items for the test
    #[arg(long, default_value_t = 64)]
    test_items: usize,
}

impl Args {
    fn open(&self, most: usize) -> tally::Result<Stretches> {
        let file = File::open(&self.file)
            .map_err(|error| format!("cannot open {}: {error}", self.file.display()))?;
        let len = (file.metadata()?.len() as usize / self.item_bytes.get()).min(most);
        Ok(Stretches { file, item_bytes: self.item_bytes.get(), len })
    }
}

struct LargeItems;

impl tally::Program for LargeItems {
    const NAME: &'static str = "large-items";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        let test = args.clone();
        Ok(tally::job(Model::<B> { layer: LinearConfig::new(FEATURES, 1).init(&device) }, Means)
            .train(move || args.open(usize::MAX))
            .test(move || test.open(test.test_items))
            .batch_size(64))
    }
}

fn main() -> ExitCode {
    tally::main::<LargeItems>()
}
