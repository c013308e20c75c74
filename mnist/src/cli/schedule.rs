//! `coordinator schedule`: what an epoch uses, so that anyone can replay a run elsewhere.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tally::options::SEED;
use tally_numerics::order::Schedule;

use crate::data::{DataOptions, MnistWithNumbers};
use crate::program::Recipe;

/// Options of `coordinator schedule`.
#[derive(Debug, Args)]
pub struct ScheduleOptions {
    /// The epoch, from 1
    #[arg(long, value_name = "E", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub epoch: u32,

    /// The run's seed
    #[arg(long, value_name = "SEED", default_value_t = SEED)]
    pub seed: u64,

    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = Recipe::Default.batch_size())]
    pub batch_size: usize,

    /// The data.
    #[command(flatten)]
    pub data: DataOptions,
}

#[derive(Serialize)]
struct Line<'a> {
    epoch: u32,
    step: u64,
    samples: &'a [u32],
    numbers: Vec<u8>,
}

/// Prints a line of JSON a step.
///
/// # Errors
/// If the data can't be read or standard output is closed.
pub fn run(options: &ScheduleOptions, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    let data = options.data.load()?;
    let schedule =
        Schedule::new(options.seed, data.train.len(), options.batch_size).context("--batch-size")?;
    let train = MnistWithNumbers::train(data.train, options.seed);
    let order = schedule.order(options.epoch);
    let mut out = std::io::BufWriter::new(out);
    for index in 0..schedule.steps_per_epoch() {
        let samples = &order[schedule.batch_range(index)];
        let numbers = samples.iter().map(|&id| train.numbers()[id as usize]).collect();
        let step = schedule.step_of(options.epoch, index);
        serde_json::to_writer(&mut out, &Line { epoch: options.epoch, step, samples, numbers })?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}
