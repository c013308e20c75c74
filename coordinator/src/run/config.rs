//! The configuration of a run, whole, as `run.json` keeps it.

use serde::{Deserialize, Serialize};
use tally_data::DataConfig;
use tally_data::kept::KeptPath;
use tally_exact::manifest::Manifest;
use tally_exact::wire::WireDtype;
use tally_worker::engine::{LabelLoss, ModelSpec};

use crate::core::recipe::Recipe;

/// The version of a run directory's layout. Raised whenever an older Tally could not go on with it in the same
/// bits (`docs/compatibility.md`); what is new and only for people does not raise it.
pub const RUN_VERSION: u32 = 1;

/// Everything that decides a run's bits, and a little more for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// [`RUN_VERSION`].
    pub version: u32,
    /// The version of Tally that started the run.
    pub tally: String,
    /// The run's random identity, 16 hex digits.
    pub run: String,
    /// What is trained.
    pub model: ModelSpec,
    /// The loss of the digit's answer.
    pub label_loss: LabelLoss,
    /// The seed of order, numbers and initial parameters.
    pub seed: u64,
    /// Epochs of the run.
    pub epochs: u32,
    /// Samples of a step, over all workers.
    pub batch_size: usize,
    /// Micro-shards of a step.
    pub shards: u32,
    /// `default` or `seed`, or `custom` if an option departs from both.
    pub recipe: String,
    /// The optimizer's settings.
    pub optimizer: Recipe,
    /// The data.
    pub data: DataConfig,
    /// Weights the run started from, if they were not drawn from the seed.
    pub init: Option<InitConfig>,
    /// Elements of a chunk.
    pub chunk: usize,
    /// Workers the run waited for.
    pub workers: usize,
    /// A checkpoint after every so many steps.
    pub checkpoint_every: Option<u64>,
    /// How many checkpoints are kept beside the best and the last.
    pub keep_checkpoints: usize,
    /// The share of steps in which a second worker checks another's bits.
    #[serde(default)]
    pub audit_rate: f64,
    /// What gradients travel as.
    #[serde(default)]
    pub wire_dtype: WireDtype,
    /// The network's tensors.
    pub tensors: Manifest,
}

/// Weights from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitConfig {
    /// Where they came from.
    pub path: KeptPath,
    /// `parameters_sha256` of the weights.
    pub sha256: String,
}
