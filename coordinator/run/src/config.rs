//! The configuration of a run, whole, as `run.json` keeps it.

use serde::{Deserialize, Serialize};
use tally_checkpoint::ProgramConfig;
use tally_core::optimizer::OptimizerConfig;
use tally_numerics::manifest::Manifest;
use tally_numerics::order::{BadSchedule, Schedule};
use tally_numerics::schema::Schema;
use tally_numerics::state::State;
use tally_numerics::wire::WireDtype;

use crate::stored_path::StoredPath;

/// The version of a run directory's layout. Raised whenever an older Tally could not continue it with the same bits
/// (`docs/compatibility.md`). Additions that are only for people do not raise it.
pub const RUN_VERSION: u32 = 1;

/// Everything that decides a run's bits, and some facts for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// [`RUN_VERSION`].
    pub version: u32,
    /// The version of Tally that started the run.
    pub tally: String,
    /// The run's random identity, 16 hex digits.
    pub run: String,
    /// What is trained.
    pub program: ProgramConfig,
    /// The losses and metrics that it measures.
    pub schema: Schema,
    /// The seed of order, numbers and initial parameters.
    pub seed: u64,
    /// Epochs of the run.
    pub epochs: u32,
    /// Samples of a step, over all workers.
    pub batch_size: usize,
    /// Microbatches that a step is cut into.
    pub microbatches: u32,
    /// `default` or `original`, or `custom` if an option departs from both.
    pub recipe: String,
    /// The optimizer's settings.
    pub optimizer: OptimizerConfig,
    /// The data.
    pub data: DataConfig,
    /// Weights the run started from, if they were not drawn from the seed.
    pub init: Option<InitConfig>,
    /// Elements of a block of the gradient's norm.
    pub chunk: usize,
    /// Workers the run waited for.
    pub workers: usize,
    /// A checkpoint after every so many steps.
    pub checkpoint_every: Option<u64>,
    /// How many checkpoints are kept beside the best and the last.
    pub keep_checkpoints: usize,
    /// The share of steps that are audited, 0 to 1.
    #[serde(default)]
    pub audit_rate: f64,
    /// The number format of gradients on the wire.
    #[serde(default)]
    pub wire_dtype: WireDtype,
    /// The network's tensors.
    pub tensors: Manifest,
}

impl RunConfig {
    /// The state of the run before its first step.
    #[must_use]
    pub fn initial_state(&self, parameters: Vec<f32>) -> State {
        State::new(parameters, &self.tensors, self.optimizer.moments().len())
    }

    /// Steps of the whole run.
    ///
    /// # Errors
    /// If the numbers of samples make no schedule.
    pub fn steps(&self) -> Result<u64, BadSchedule> {
        let schedule = Schedule::new(self.seed, self.data.train_samples, self.batch_size)?;
        Ok(schedule.steps_per_epoch() as u64 * u64::from(self.epochs))
    }

    /// Whether the optimizer's settings can be, and are for these tensors.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check_optimizer(&self) -> Result<(), String> {
        self.optimizer.check(|name| format!("the optimizer's {name}"))?;
        self.optimizer.check_groups(&self.tensors)
    }
}

/// The samples of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataConfig {
    /// The directory they were read from; `None` for data that the program brings.
    pub directory: Option<StoredPath>,
    /// Only the first so many training samples.
    pub train_limit: Option<usize>,
    /// Only the first so many test samples.
    pub test_limit: Option<usize>,
    /// Training samples.
    pub train_samples: usize,
    /// Test samples.
    pub test_samples: usize,
    /// SHA-256 over all of them, in hex.
    pub sha256: String,
}

/// Weights from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitConfig {
    /// Where they came from.
    pub path: StoredPath,
    /// `parameters_sha256` of the parameters that the run started from.
    pub sha256: String,
    /// Tensors that the file lacks were initialised as without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}
