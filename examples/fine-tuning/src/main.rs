//! Fine-tuning on Tally: a new head on a frozen body, from a checkpoint of the `fashion` example.
//!
//! The body's tensors have the names that the other program gave them, so its checkpoint fits. They are a part of the
//! state and of checkpoints; they neither travel with a step nor are updated. BatchNorm's running statistics go on with the
//! new data.
//!
//! ```sh
//! cargo run --release -p fashion -- local --epochs 3 --run-dir runs/fashion
//! cargo run --release -p fine-tuning -- local --init runs/fashion/checkpoints/best --init-partial
//! ```

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::relu;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use tally::ParameterGroup;

const SIDE: usize = 28;
/// The classes that are shoes: sandals, sneakers, ankle boots.
const SHOES: [u8; 3] = [5, 7, 9];

#[derive(Module, Debug)]
struct Shoes<B: Backend> {
    conv1: Conv2d<B>,
    norm1: BatchNorm<B>,
    conv2: Conv2d<B>,
    norm2: BatchNorm<B>,
    pool: MaxPool2d,
    hidden: Linear<B>,
    head: Linear<B>,
}

impl<B: Backend> Shoes<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        Self {
            conv1: Conv2dConfig::new([1, width], [3, 3]).init(device),
            norm1: BatchNormConfig::new(width).init(device),
            conv2: Conv2dConfig::new([width, 2 * width], [3, 3]).init(device),
            norm2: BatchNormConfig::new(2 * width).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            hidden: LinearConfig::new(2 * width * 5 * 5, 128).init(device),
            head: LinearConfig::new(128, 2).init(device),
        }
    }

    fn forward(&self, batch: Batch<B>) -> ClassificationOutput<B> {
        let x = self.pool.forward(relu(self.norm1.forward(self.conv1.forward(batch.images))));
        let x = self.pool.forward(relu(self.norm2.forward(self.conv2.forward(x))));
        let output = self.head.forward(relu(self.hidden.forward(x.flatten(1, 3))));
        let loss = CrossEntropyLossConfig::new().init(&output.device());
        let loss = loss.forward(output.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, output, batch.labels)
    }
}

impl<B: AutodiffBackend> TrainStep for Shoes<B> {
    type Input = Batch<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, batch: Batch<B>) -> TrainOutput<ClassificationOutput<B>> {
        let item = self.forward(batch);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Shoes<B> {
    type Input = Batch<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, batch: Batch<B>) -> ClassificationOutput<B> {
        self.forward(batch)
    }
}

#[derive(Clone, Debug)]
struct Batch<B: Backend> {
    images: Tensor<B, 4>,
    labels: Tensor<B, 1, Int>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Picture {
    pixels: Vec<u8>,
    label: u8,
}

struct Stack;

impl<B: Backend> Batcher<B, Picture, Batch<B>> for Stack {
    fn batch(&self, pictures: Vec<Picture>, device: &B::Device) -> Batch<B> {
        let pixels = pictures.iter().flat_map(|picture| &picture.pixels);
        let pixels: Vec<f32> = pixels.map(|&pixel| (f32::from(pixel) / 255.0 - 0.286) / 0.353).collect();
        let images = Tensor::from_data(TensorData::new(pixels, [pictures.len(), 1, SIDE, SIDE]), device);
        let labels: Vec<i32> = pictures.iter().map(|picture| picture.label.into()).collect();
        Batch { images, labels: Tensor::from_ints(labels.as_slice(), device) }
    }
}

/// Reads one half of the data set, such as `train-images-idx3-ubyte.gz` and its labels.
fn read(directory: &Path, half: &str) -> tally::Result<InMemDataset<Picture>> {
    let bytes = |name: String, header: usize| -> tally::Result<Vec<u8>> {
        let path = directory.join(name);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| MultiGzDecoder::new(file).read_to_end(&mut bytes))
            .map_err(|error| format!("{}: {error}; apt install dataset-fashion-mnist", path.display()))?;
        Ok(bytes.split_off(header.min(bytes.len())))
    };
    let pixels = bytes(format!("{half}-images-idx3-ubyte.gz"), 16)?;
    let labels = bytes(format!("{half}-labels-idx1-ubyte.gz"), 8)?;
    let pictures = pixels.chunks_exact(SIDE * SIDE).zip(labels);
    let picture = |(pixels, label): (&[u8], u8)| Picture {
        pixels: pixels.to_vec(),
        label: u8::from(SHOES.contains(&label)),
    };
    Ok(InMemDataset::new(pictures.map(picture).collect()))
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// Channels of the first convolution, as the checkpoint has them
    #[arg(long, default_value_t = 16)]
    width: usize,

    /// The directory with the four files of the data set
    #[arg(long, value_name = "DIR", default_value = "/usr/share/datasets/fashion-mnist")]
    pictures: PathBuf,
}

struct FineTuning;

impl tally::Program for FineTuning {
    const NAME: &'static str = "fine-tuning";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        let (train, test) = (args.pictures.clone(), args.pictures);
        Ok(tally::job(Shoes::<B>::new(args.width, &device), Stack)
            .train(move || read(&train, "train"))
            .test(move || read(&test, "t10k"))
            .metric("accuracy", tally::accuracy)
            .group(ParameterGroup::new("body", |name, _| !name.starts_with("head.")).frozen())
            .learning_rate(0.05, tally::LrSchedule::Cosine)
            .batch_size(128)
            .epochs(2))
    }
}

fn main() -> ExitCode {
    tally::main::<FineTuning>()
}
