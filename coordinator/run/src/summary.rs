//! `summary.json`: the result of a run.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use tally_core::events::Committed;
use tally_numerics::schema::Named;

/// Written when a run ends, and when a stretch of it is stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `done`, `stopped` or `diverged`.
    pub outcome: String,
    /// Committed steps.
    pub steps: u64,
    /// Whole epochs.
    pub epochs: u32,
    /// The last test pass, if there was one: `loss`, then each metric that is one number.
    pub test: Option<Named>,
    /// SHA-256 over the model's tensors in the order of their names, little-endian `f32`.
    pub parameters_sha256: String,
    /// Digest of parameters and momentum, as in the journal.
    pub digest: String,
    /// Wall time of all stretches.
    pub wall_seconds: f64,
    /// Training samples a second, over the time spent in steps.
    pub samples_per_second: f64,
    /// Where the time of a step went.
    pub median_seconds: MedianSeconds,
    /// Training samples committed.
    pub samples: u64,
    /// Samples that an epoch ended without: always 0.
    pub samples_lost: u64,
    /// Samples used twice in an epoch: always 0.
    pub samples_duplicated: u64,
    /// Workers that became ready for work.
    pub workers_joined: u64,
    /// Workers that were lost without leaving on their own request.
    pub workers_lost: u64,
    /// Audits since this start: nodes that a second worker computed too, and sums that the coordinator added up too.
    #[serde(default)]
    pub audits: u64,
    /// Those whose bits differed.
    #[serde(default)]
    pub audits_differed: u64,
}

/// Medians over the last steps (at most [`REMEMBERED`]) of this start, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MedianSeconds {
    /// A step, from its plans to its commit.
    pub step: f64,
    /// Computing of the slowest worker.
    pub compute: f64,
    /// From there until the gradient was summed.
    pub transfer: f64,
    /// The average wait of workers for the slowest.
    pub waiting: f64,
    /// A worker's round: from the beginning of its contribution to the whole sum.
    pub round: f64,
    /// A worker's update after that.
    pub apply: f64,
}

/// Times that are remembered, of each kind.
pub const REMEMBERED: usize = 4096;

/// The last times of each kind.
#[derive(Debug, Default)]
pub struct Times {
    kinds: [VecDeque<f64>; 6],
}

impl Times {
    fn remember(&mut self, kind: usize, seconds: f64) {
        let times = &mut self.kinds[kind];
        if times.len() == REMEMBERED {
            times.pop_front();
        }
        times.push_back(seconds);
    }

    /// A step counts.
    pub fn step(&mut self, step: &Committed) {
        let parts = [step.seconds, step.compute_seconds, step.transfer_seconds, step.waiting_seconds];
        for (kind, seconds) in parts.into_iter().enumerate() {
            self.remember(kind, seconds);
        }
    }

    /// A worker has told its own times; a spare has no round.
    pub fn worker(&mut self, apply: f64, round: f64) {
        if round > 0.0 {
            self.remember(4, round);
        }
        self.remember(5, apply);
    }

    /// The medians; 0 where nothing was measured.
    #[must_use]
    pub fn medians(&self) -> MedianSeconds {
        let median = |kind: usize| {
            let mut times: Vec<f64> = self.kinds[kind].iter().copied().collect();
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        };
        MedianSeconds {
            step: median(0),
            compute: median(1),
            transfer: median(2),
            waiting: median(3),
            round: median(4),
            apply: median(5),
        }
    }
}
