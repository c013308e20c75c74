//! A character-level transformer on Tally: it learns to write sonnets, a letter at a time.
//!
//! ```sh
//! cargo run --release -p characters -- local --workers 2
//! ```

use std::process::ExitCode;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};

/// Six sonnets of Shakespeare's.
const TEXT: &str = include_str!("../sonnets.txt");
/// Letters are bytes of ASCII; 0 fills shorter texts up.
const LETTERS: usize = 128;
const FILL: u8 = 0;

#[derive(Module, Debug)]
struct Writer<B: Backend> {
    letters: Embedding<B>,
    places: Embedding<B>,
    encoder: TransformerEncoder<B>,
    output: Linear<B>,
}

impl<B: Backend> Writer<B> {
    fn new(args: &Args, device: &B::Device) -> Self {
        let encoder = TransformerEncoderConfig::new(args.width, 4 * args.width, 4, args.layers);
        Self {
            letters: EmbeddingConfig::new(LETTERS, args.width).init(device),
            places: EmbeddingConfig::new(args.context, args.width).init(device),
            encoder: encoder.with_norm_first(true).with_dropout(0.1).init(device),
            output: LinearConfig::new(args.width, LETTERS).init(device),
        }
    }

    fn forward(&self, lines: Lines<B>) -> ClassificationOutput<B> {
        let ([count, length], device) = (lines.letters.dims(), lines.letters.device());
        let places = Tensor::<B, 1, Int>::arange(0..length as i64, &device).unsqueeze::<2>();
        let x = self.letters.forward(lines.letters) + self.places.forward(places);
        let mask = generate_autoregressive_mask(count, length, &device);
        let x = self.encoder.forward(TransformerEncoderInput::new(x).mask_attn(mask));
        let output = self.output.forward(x).flatten::<2>(0, 1);
        let next = lines.next.flatten::<1>(0, 1);
        let loss = CrossEntropyLossConfig::new().with_pad_tokens(Some(vec![FILL.into()])).init(&device);
        let loss = loss.forward(output.clone(), next.clone());
        // Burn divides by the filled length; the mean is to be over the letters that are there.
        let loss = loss * (count * length) as f32 / lines.count as f32;
        ClassificationOutput::new(loss, output, next)
    }
}

impl<B: AutodiffBackend> TrainStep for Writer<B> {
    type Input = Lines<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, lines: Lines<B>) -> TrainOutput<ClassificationOutput<B>> {
        let item = self.forward(lines);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl<B: Backend> InferenceStep for Writer<B> {
    type Input = Lines<B>;
    type Output = ClassificationOutput<B>;

    fn step(&self, lines: Lines<B>) -> ClassificationOutput<B> {
        self.forward(lines)
    }
}

/// Texts, and of each letter the one that follows.
#[derive(Clone, Debug)]
struct Lines<B: Backend> {
    letters: Tensor<B, 2, Int>,
    next: Tensor<B, 2, Int>,
    /// Letters that follow one, without the filling.
    count: usize,
}

struct Stack;

impl<B: Backend> Batcher<B, String, Lines<B>> for Stack {
    fn batch(&self, texts: Vec<String>, device: &B::Device) -> Lines<B> {
        let length = texts.iter().map(|text| text.len() - 1).max().unwrap_or(0);
        let letters = |from: usize| {
            let letters = texts.iter().flat_map(|text| {
                let letters = text.bytes().skip(from).chain(std::iter::repeat(FILL));
                letters.take(length).map(i32::from)
            });
            Tensor::from_data(TensorData::new(letters.collect(), [texts.len(), length]), device)
        };
        let count = texts.iter().map(|text| text.len() - 1).sum();
        Lines { letters: letters(0), next: letters(1), count }
    }
}

/// So many lines from each line on, as many letters of them as the network looks back; every tenth is for the test.
fn stanzas(lines: usize, context: usize, test: bool) -> InMemDataset<String> {
    let all: Vec<&str> = TEXT.lines().collect();
    let mine = all.windows(lines).enumerate().filter(|(index, _)| (index % 10 == 0) == test);
    InMemDataset::new(mine.map(|(_, lines)| lines.join("\n").chars().take(context + 1).collect()).collect())
}

/// The share of letters that were foreseen.
fn accuracy<B: Backend>(output: &ClassificationOutput<B>) -> tally::Ratio {
    let answers = output.output.clone().argmax(1).into_data();
    let truth = output.targets.clone().into_data();
    let pairs = answers.iter::<i64>().zip(truth.iter::<i64>()).filter(|(_, truth)| *truth != i64::from(FILL));
    let (right, all) =
        pairs.fold((0, 0), |(right, all), (answer, truth)| (right + u32::from(answer == truth), all + 1));
    tally::Ratio { numerator: right.into(), denominator: all.into() }
}

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
struct Args {
    /// Letters that the network looks back
    #[arg(long, default_value_t = 128)]
    context: usize,

    /// Lines of a text
    #[arg(long, default_value_t = 3)]
    lines: usize,

    /// Width of the network, a multiple of 4
    #[arg(long, default_value_t = 64)]
    width: usize,

    /// Layers of the network
    #[arg(long, default_value_t = 2)]
    layers: usize,
}

struct Characters;

impl tally::Program for Characters {
    const NAME: &'static str = "characters";
    type Args = Args;

    fn job<B: AutodiffBackend>(args: Args, device: B::Device) -> tally::Result<impl tally::Job<B> + 'static> {
        if args.context < 2 || args.lines < 2 || !args.width.is_multiple_of(4) {
            return Err("--context and --lines are at least 2, and --width a multiple of 4".into());
        }
        let Args { lines, context, .. } = args;
        Ok(tally::job(Writer::<B>::new(&args, &device), Stack)
            .train(move || Ok(stanzas(lines, context, false)))
            .test(move || Ok(stanzas(lines, context, true)))
            .weight(|text| (text.len() - 1) as f64)
            .metric("accuracy", accuracy)
            .optimizer(AdamWConfig::new().with_beta_2(0.99).with_weight_decay(0.1))
            .no_weight_decay_on_vectors()
            .learning_rate(3e-3, tally::LrSchedule::Cosine)
            .warmup_steps(50)
            .clip_norm(1.0)
            .batch_size(16)
            .epochs(60))
    }
}

fn main() -> ExitCode {
    tally::main::<Characters>()
}
