//! `worker evaluate`: a checkpoint's test line, computed again on this machine.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use tally_cli::logging::LogOptions;
use tally_numerics::TEST_MICROBATCH;
use tally_numerics::schema::Sums;
use tally_worker::device::DeviceOptions;

use crate::data::{Mnist, MnistWithNumbers, RecordedData};
use crate::network::metrics::schema;
use crate::predict;

/// Options of `worker evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateOptions {
    /// A checkpoint's directory, such as runs/run-0001/checkpoints/best
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,

    /// Four IDX files of 28×28 digits [default: the run's own data, from its recorded directory]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Use only the first N test samples [default: as the run]
    #[arg(long, value_name = "N")]
    pub test_limit: Option<usize>,

    /// The device.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Tests the checkpoint on the test set with the run's random numbers, and returns the line.
///
/// # Errors
/// If the checkpoint, the data or the device cannot be used.
pub fn run(options: &EvaluateOptions) -> anyhow::Result<String> {
    options.log.init();
    let path = &options.checkpoint;
    let checkpoint = tally_checkpoint::read(path)?;
    let arguments = predict::arguments(path, &checkpoint.meta)?;
    let mut engine = arguments.engine(&options.device)?;
    let meta = predict::load(path, checkpoint, arguments.model, &mut *engine)?;
    let config = &meta.config;
    let wrong = || format!("the manifest of {} does not tell the run's seed", path.display());
    let seed = config.get("seed").and_then(Value::as_u64).with_context(wrong)?;
    let trained_on = predict::data(path, &meta)?;
    let data = match &options.data_dir {
        None => RecordedData(&trained_on).whole(None)?,
        Some(directory) => {
            let data = Mnist::from_dir(directory)?;
            if !RecordedData(&trained_on).is(&data) {
                tracing::warn!("{} is not the data that the run was trained on", directory.display());
            }
            data
        }
    };
    // Another data set may have fewer samples than the run was tested with.
    let limit = trained_on.test_limit.map(|limit| limit.min(data.test.len()));
    let data = data.limit(None, options.test_limit.or(limit))?;
    let test = MnistWithNumbers::test(data.test, seed);
    let ids: Vec<u32> = (0..test.len() as u32).collect();
    let microbatches = ids.chunks(TEST_MICROBATCH);
    let sums: Result<Vec<Option<Sums>>, _> =
        microbatches.map(|ids| engine.evaluate(&test.microbatch(ids.iter().copied())).map(Some)).collect();
    let evaluation = schema().evaluation(test.len(), sums?);
    Ok(format!("step {}  {}", meta.step, schema().summary(&evaluation)))
}
