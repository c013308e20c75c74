//! `summary.json`: what came out of a run.

use serde::{Deserialize, Serialize};

use tally_worker::scores::Scores;

/// Written when a run ends, and when a stretch of it is stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `done`, `stopped` or `diverged`.
    pub outcome: String,
    /// Committed steps.
    pub steps: u64,
    /// Whole epochs.
    pub epochs: u32,
    /// The last test pass, if there was one.
    pub test: Option<Scores>,
    /// SHA-256 over the model's tensors in the order of their names, little-endian `f32`.
    pub parameters_sha256: String,
    /// Digest of parameters and momentum, as in the journal.
    pub digest: String,
    /// Wall time of all stretches.
    pub wall_seconds: f64,
    /// Training samples a second, over the time spent in steps.
    pub images_per_second: f64,
    /// Training samples committed.
    pub samples: u64,
    /// Samples that an epoch ended without: always 0.
    pub samples_lost: u64,
    /// Samples used twice in an epoch: always 0.
    pub samples_duplicated: u64,
    /// Workers that became ready for work.
    pub workers_joined: u64,
    /// Workers that were lost against their will.
    pub workers_lost: u64,
}
