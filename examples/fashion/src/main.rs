//! Fashion-MNIST on Tally: a convolutional network with BatchNorm and dropout, trained by AdamW on augmented pictures.
//!
//! ```sh
//! apt install dataset-fashion-mnist
//! cargo run --release -p fashion -- local --workers 2 --epochs 3
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
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::tensor::activation::relu;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

const SIDE: usize = 28;

#[derive(Module, Debug)]
struct Cnn<B: Backend> {
    conv1: Conv2d<B>,
    norm1: BatchNorm<B>,
    conv2: Conv2d<B>,
    norm2: BatchNorm<B>,
    pool: MaxPool2d,
    hidden: Linear<B>,
    dropout: Dropout,
    output: Linear<B>,
}

impl<B: Backend> Cnn<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        Self {
            conv1: Conv2dConfig::new([1, width], [3, 3]).init(device),
            norm1: BatchNormConfig::new(width).init(device),
            conv2: Conv2dConfig::new([width, 2 * width], [3, 3]).init(device),
            norm2: BatchNormConfig::new(2 * width).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            hidden: LinearConfig::new(2 * width * 5 * 5, 128).init(device),
            dropout: DropoutConfig::new(0.3).init(),
            output: LinearConfig::new(128, 10).init(device),
        }
    }

    fn forward(&self, batch: Batch<B>) -> ClassificationOutput<B> {
        let x = self.pool.forward(relu(self.norm1.forward(self.conv1.forward(batch.images))));
        let x = self.pool.forward(relu(self.norm2.forward(self.conv2.forward(x))));
        let x = self.dropout.forward(relu(self.hidden.forward(x.flatten(1, 3))));
        let output = self.output.forward(x);
        let loss = CrossEntropyLossConfig::new().init(&output.device());
        let loss = loss.forward(output.clone(), batch.labels.clone());
        ClassificationOutput::new(loss, output, batch.labels)
    }
}

impl<B: AutodiffBackend> TrainStep for Cnn<B> {
    type Input = Batch<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, batch: Batch<B>) -> TrainOutput<ClassificationOutput<B>> {
        let item = self.forward(batch);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Cnn<B> {
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
    Ok(InMemDataset::new(
        pictures.map(|(pixels, label)| Picture { pixels: pixels.to_vec(), label }).collect(),
    ))
}

/// Half of the pictures are mirrored.
fn mirror(mut picture: Picture, random: &mut tally::Stream) -> Picture {
    if random.below(2) == 0 {
        picture.pixels.chunks_mut(SIDE).for_each(<[u8]>::reverse);
    }
    picture
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// Channels of the first convolution
    #[arg(long, default_value_t = 16)]
    width: usize,

    /// The directory with the four files of the data set
    #[arg(long, value_name = "DIR", default_value = "/usr/share/datasets/fashion-mnist")]
    pictures: PathBuf,
}

struct Fashion;

impl tally::Program for Fashion {
    const NAME: &'static str = "fashion";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        let (train, test) = (args.pictures.clone(), args.pictures);
        Ok(tally::job(Cnn::<B>::new(args.width, &device), Stack)
            .train(move || read(&train, "train"))
            .test(move || read(&test, "t10k"))
            .augment(mirror)
            .metric("accuracy", tally::accuracy)
            .optimizer(AdamWConfig::new().with_weight_decay(0.05))
            .no_weight_decay_on_vectors()
            .learning_rate(2e-3, tally::LrSchedule::Cosine)
            .batch_size(128)
            .epochs(10))
    }
}

fn main() -> ExitCode {
    tally::main::<Fashion>()
}
