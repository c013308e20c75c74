//! `worker evaluate`: a checkpoint's test line, computed anew on this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tally_data::{Mnist, Paired};
use tally_proto::convert::LeafAnswers;

use crate::cli::DeviceOptions;
use crate::engine::LabelLoss;
use crate::logging::LogOptions;
use crate::predict::Predictor;
use crate::scores::{self, TEST_LEAF};

/// Options of `worker evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateOptions {
    /// A checkpoint's directory, such as runs/run-0001/checkpoints/best
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,

    /// Four IDX files of 28×28 digits [default: the run's own data, from where it was]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Use only the first N test samples [default: as the run]
    #[arg(long, value_name = "N")]
    pub test_limit: Option<usize>,

    /// What to compute with.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Tests the checkpoint on the test set with the run's random numbers, and returns the line.
///
/// # Errors
/// If the checkpoint, the data or the device can't be used.
pub fn run(options: &EvaluateOptions) -> anyhow::Result<String> {
    options.log.init()?;
    let mut predictor = Predictor::open(&options.checkpoint, &options.device)?;
    let (config, loss) = (&predictor.meta().config, predictor.label_loss());
    let wrong = || format!("the manifest of {} does not tell the run's seed", options.checkpoint.display());
    let seed = config.get("seed").and_then(serde_json::Value::as_u64).with_context(wrong)?;
    let trained_on = predictor.data()?;
    let data = match &options.data_dir {
        None => trained_on.whole(None)?,
        Some(directory) => {
            let data = Mnist::from_dir(directory)?;
            if !trained_on.is(&data) {
                tracing::warn!("{} is not the data that the run was trained on", directory.display());
            }
            data
        }
    };
    // A set of others may have fewer than the run was tested with.
    let limit = trained_on.test_limit.map(|limit| limit.min(data.test.len()));
    let data = data.limit(None, options.test_limit.or(limit))?;
    let test = Paired::test(data.test, seed);
    let mut answers = BTreeMap::new();
    let ids: Vec<u32> = (0..test.len() as u32).collect();
    for (leaf, ids) in ids.chunks(TEST_LEAF).enumerate() {
        let samples = test.samples(ids)?;
        let answered = predictor.raw(&samples)?;
        answers.insert(leaf as u32, answered.leaf(&samples, loss));
    }
    let scores = scores::score(&test, &answers);
    Ok(format!("step {}  {}", predictor.meta().step, scores::test_line(&scores)))
}

impl crate::engine::Answers {
    /// What the coordinator needs to know of them.
    #[must_use]
    pub fn leaf(&self, samples: &tally_data::Samples, loss: LabelLoss) -> LeafAnswers {
        LeafAnswers {
            losses: self.losses(samples, loss),
            digits: (0..samples.len()).map(|i| self.digit(i)).collect(),
            sums: self.sums.clone(),
            differences: self.differences.clone(),
        }
    }
}
