//! What a run's record tells of its computing.

use std::path::Path;

use anyhow::ensure;
use serde::Serialize;
use tally_numerics::wire::WireDtype;

use tally_core::assign::{self, Load};
use tally_run::record::Record;

/// A run that a plan starts from.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its directory.
    pub run_dir: String,
    /// Its model.
    pub variant: String,
    /// Samples of its steps.
    pub batch_size: usize,
    /// Its microbatches.
    pub microbatches: u32,
    /// What its gradients travel as.
    pub wire_dtype: WireDtype,
    /// Vectors that its optimizer keeps.
    pub moments: usize,
    /// Its gradient is clipped.
    pub clipped: bool,
    /// Samples that its coordinator holds.
    pub samples: usize,
    /// The number of workers that most of its steps had.
    pub workers: usize,
    /// The median of those steps, in seconds.
    pub step_seconds: f64,
    /// Seconds that the slowest worker of such a step computed for each of its samples: the median.
    pub sample_seconds: f64,
}

impl Measured {
    /// Reads a run's record.
    ///
    /// # Errors
    /// If there is none, or no whole step in it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let record = Record::read(path)?;
        let config = &record.config;
        // The last batch of an epoch may be short.
        let whole: Vec<_> = record.steps.iter().filter(|step| step.samples == config.batch_size).collect();
        let with = |workers: usize| whole.iter().filter(move |step| step.workers == workers);
        let counts = whole.iter().map(|step| step.workers);
        let workers = counts.max_by_key(|&workers| (with(workers).count(), workers)).unwrap_or(0);
        ensure!(
            workers > 0,
            "{} has no whole step yet, so it says nothing of how long one takes; give --sample-time",
            path.display()
        );
        let leaves = assign::quotas(config.microbatches, &vec![Load { busy: 0.0, per_leaf: 1.0 }; workers]);
        let share = f64::from(leaves.into_iter().max().unwrap_or(1)) / f64::from(config.microbatches);
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        let compute = median(with(workers).map(|step| step.compute_seconds).collect());
        Ok(Self {
            run_dir: path.display().to_string(),
            variant: config.program.variant.clone(),
            batch_size: config.batch_size,
            microbatches: config.microbatches,
            wire_dtype: config.wire_dtype,
            moments: config.optimizer.moments().len(),
            clipped: !config.optimizer.is_unscaled(),
            samples: config.data.train_samples + config.data.test_samples,
            workers,
            step_seconds: median(with(workers).map(|step| step.seconds).collect()),
            sample_seconds: compute / (share * config.batch_size as f64),
        })
    }
}
