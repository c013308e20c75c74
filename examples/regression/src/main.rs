//! The smallest program on Tally: two layers learn a curve.
//!
//! ```sh
//! cargo run --release -p regression -- local --workers 2
//! ```

use std::process::ExitCode;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::nn::loss::{MseLoss, Reduction};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::tanh;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{InferenceStep, RegressionOutput, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};

// ---- Plain Burn: a model, its steps, a batcher ----

#[derive(Module, Debug)]
struct Curve<B: Backend> {
    hidden: Linear<B>,
    output: Linear<B>,
}

impl<B: Backend> Curve<B> {
    fn new(width: usize, device: &B::Device) -> Self {
        let hidden = LinearConfig::new(1, width).init(device);
        Self { hidden, output: LinearConfig::new(width, 1).init(device) }
    }

    fn forward(&self, points: Points<B>) -> RegressionOutput<B> {
        let output = self.output.forward(tanh(self.hidden.forward(points.x)));
        let loss = MseLoss::new().forward(output.clone(), points.y.clone(), Reduction::Mean);
        RegressionOutput::new(loss, output, points.y)
    }
}

impl<B: AutodiffBackend> TrainStep for Curve<B> {
    type Input = Points<B>;
    type Output = RegressionOutput<B>;

    fn step(&self, points: Points<B>) -> TrainOutput<RegressionOutput<B>> {
        let item = self.forward(points);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Curve<B> {
    type Input = Points<B>;
    type Output = RegressionOutput<B>;

    fn step(&self, points: Points<B>) -> RegressionOutput<B> {
        self.forward(points)
    }
}

#[derive(Clone, Debug)]
struct Points<B: Backend> {
    x: Tensor<B, 2>,
    y: Tensor<B, 2>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Point {
    x: f32,
    y: f32,
}

struct Stack;

impl<B: Backend> Batcher<B, Point, Points<B>> for Stack {
    fn batch(&self, points: Vec<Point>, device: &B::Device) -> Points<B> {
        let column =
            |values: Vec<f32>| Tensor::<B, 1>::from_floats(values.as_slice(), device).unsqueeze_dim(1);
        let (x, y) = points.iter().map(|point| (point.x, point.y)).unzip();
        Points { x: column(x), y: column(y) }
    }
}

/// Points of a sine curve.
fn points(count: u16) -> InMemDataset<Point> {
    let x = |index: u16| 6.0 * (f32::from(index) / f32::from(count) - 0.5);
    InMemDataset::new((0..count).map(x).map(|x| Point { x, y: x.sin() }).collect())
}

// ---- Tally ----

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// Units of the hidden layer
    #[arg(long, default_value_t = 32)]
    width: usize,
}

struct Regression;

impl tally::Program for Regression {
    const NAME: &'static str = "regression";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        Ok(tally::job(Curve::<B>::new(args.width, &device), Stack)
            .train(|| Ok(points(2000)))
            .test(|| Ok(points(333)))
            .learning_rate(0.1, tally::LrSchedule::Cosine)
            .epochs(20))
    }
}

fn main() -> ExitCode {
    tally::main::<Regression>()
}
