//! `coordinator samples`: a picture of the data, with a network's predictions.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tally::cli::check_extension;
use tally::options::SEED;
use tally_checkpoint::files::write_whole;
use tally_cli::logging::LogOptions;
use tally_worker::device::DeviceOptions;

use crate::data::{DataOptions, MnistWithNumbers, RecordedData};
use crate::predict::{self, Predictor};
use crate::sample_grid::{self, Grid, MOST_TILES};

/// A split of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitChoice {
    /// The samples of the training
    Train,
    /// The samples of the test
    Test,
}

/// Options of `coordinator samples`.
#[derive(Debug, Args)]
pub struct SamplesOptions {
    /// The PNG to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// A checkpoint's directory: its answers stand beside the truth, wrong ones marked
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,

    /// The samples to draw
    #[arg(long, value_enum, value_name = "SPLIT", default_value_t = SplitChoice::Test)]
    pub split: SplitChoice,

    /// Digits in a row
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MOST_TILES as i64))]
    pub columns: u32,

    /// Rows
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MOST_TILES as i64))]
    pub rows: u32,

    /// The first sample, counted from 0 as `coordinator schedule` does
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first: usize,

    /// Seed of the random numbers [default: the checkpoint's, or else 1]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,

    /// Four IDX files of 28×28 digits [default: the checkpoint's, or else the embedded MNIST]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The device that makes the predictions.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Draws the picture and returns a line that describes it.
///
/// # Errors
/// If the checkpoint, the data or the device cannot be used, or the file cannot be written.
pub fn run(options: &SamplesOptions) -> anyhow::Result<String> {
    options.log.init();
    check_extension(&options.out, "PNG", &["png"])?;
    let count = options.columns as usize * options.rows as usize;
    ensure!(
        count <= MOST_TILES,
        "--columns {} times --rows {} makes {count} digits; at most {MOST_TILES} fit a picture",
        options.columns,
        options.rows
    );
    let mut predictor = match &options.checkpoint {
        Some(path) => Some(Predictor::open(path, &options.device)?),
        None => None,
    };
    let config = predictor.as_ref().map(|p| &p.meta().config);
    let seed = config.and_then(|c| c.get("seed")).and_then(Value::as_u64);
    let data = match (&options.data_dir, &options.checkpoint, &predictor) {
        (None, Some(path), Some(predictor)) => {
            RecordedData(&predict::data(path, predictor.meta())?).whole(None)?
        }
        (directory, ..) => DataOptions { data_dir: directory.clone(), ..DataOptions::default() }.load()?,
    };
    let seed = options.seed.or(seed).unwrap_or(SEED);
    let (data, split) = match options.split {
        SplitChoice::Train => (MnistWithNumbers::train(data.train, seed), "train"),
        SplitChoice::Test => (MnistWithNumbers::test(data.test, seed), "test"),
    };
    let tiles = sample_grid::tiles(&data, split, options.first, count, predictor.as_mut())?;
    let (first, last) = (options.first, options.first + tiles.len() - 1);
    let right = tiles.iter().filter(|tile| tile.right()).count();
    let (total, seen) = (tiles.len(), format!("{split} digits {first} to {last}"));
    let (subtitle, line) = match &predictor {
        None => (
            format!("random numbers of seed {seed}; sum = number + label, diff = |number \u{2212} label|"),
            format!("{seen} are in {}", options.out.display()),
        ),
        Some(predictor) => {
            let all = format!("all three right for {right} of {total}");
            let step = predictor.meta().step;
            (
                format!("predictions of step {step}: {all}; a wrong one has a \u{2717} and a frame"),
                format!("{seen} are in {}, {all}", options.out.display()),
            )
        }
    };
    let grid = Grid { title: format!("MNIST {seen}"), subtitle, columns: options.columns as usize, tiles };
    let png = grid.png()?;
    write_whole(&options.out, &png)
        .with_context(|| format!("cannot write {}; choose another file with --out", options.out.display()))?;
    Ok(line)
}
