//! The options of `chaos`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tally_mnist::ModelSpec;

use super::plan::Settings;

/// Samples of a step.
const BATCH: u64 = 64;
/// More epochs than any run has time for.
pub const ENDLESS: u64 = 1_000_000;

/// Trains with real processes, does them harm, and shows what the promises are worth.
///
/// Workers are killed, frozen, cut off and sent away, the coordinator is killed and started
/// again, all from a seed. Then the run ends in peace and is compared, step by step, with one
/// that nobody disturbed. The exit code is 1 if a promise was broken.
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 100)]
pub struct Options {
    /// Decides what happens when; the same seed with the same options repeats it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// For how long faults happen
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,

    /// Mean time between two faults, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub action_every: u64,

    /// Workers that are there all the time, but for their faults
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub workers: usize,

    /// Further workers that may be there for a while
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub guests: usize,

    /// Workers killed one at a time after that, each when all are there
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub encores: usize,

    /// Microbatches of a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub microbatches: u32,

    /// What is trained. The synthetic engine's time a sample does not change its bits
    #[arg(long, default_value = "synthetic:parameters=300000,us-per-sample=2000,jitter=0.2")]
    pub model: ModelSpec,

    /// Training samples of an epoch
    #[arg(long, value_name = "N", default_value_t = 6000)]
    pub samples: usize,

    /// Checkpoint after every so many steps
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    pub checkpoint_every: u64,

    /// Seconds without a step that count as a hang
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    pub patience: u64,

    /// Steps that a restart which a worker lived through may compute again; without it they
    /// are counted only
    #[arg(long, value_name = "STEPS")]
    pub recomputed_at_most: Option<u64>,

    /// Have workers add gradients up, and harm their links too. The undisturbed run uses the star
    #[arg(long)]
    pub sharded: bool,

    /// Make no network namespaces, and so pull no cables, even where it is possible
    #[arg(long)]
    pub no_namespaces: bool,

    /// Keep the run, the reference and all logs in this directory, which must not be there yet
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,

    /// Write the scorecard to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the scorecard to this file as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Print the plan, and do nothing
    #[arg(long)]
    pub plan_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::parse_from(["chaos"])
    }
}

impl Options {
    /// What the plan is made for. The plan depends on whether there are `cables`.
    #[must_use]
    pub(super) fn settings(&self, cables: bool) -> Settings {
        Settings {
            seed: self.seed,
            workers: self.workers,
            guests: self.guests,
            cables,
            links: self.sharded,
            length: Duration::from_secs_f64(self.minutes.max(0.0) * 60.0),
            every: Duration::from_millis(self.action_every),
            step: self.step(),
        }
    }

    /// The plan as a machine with or without namespaces would follow it, a line an action.
    #[must_use]
    pub fn plan(&self) -> String {
        let mut text = String::new();
        for a in super::plan::plan(&self.settings(!self.no_namespaces)) {
            let who = a.slot.map_or_else(String::new, |slot| format!("w{slot}"));
            let (at, lasts) = (a.at.as_secs_f64(), a.lasts.as_secs_f64());
            let _ = writeln!(text, "{at:9.3} s  {who:4}{} for {lasts:.3} s", a.fault);
        }
        text
    }

    /// About how long an undisturbed step takes.
    fn step(&self) -> Duration {
        match &self.model {
            ModelSpec::Synthetic(spec) => {
                let most = BATCH as u32 / (self.workers as u32).clamp(1, self.microbatches);
                Duration::from_millis(5) + spec.per_sample * most
            }
            ModelSpec::Mlp => Duration::from_millis(20),
            ModelSpec::Reference => Duration::from_millis(1500),
        }
    }

    /// The options of a training run. Nothing in them depends on the number of epochs.
    pub(super) fn training(&self, model: &ModelSpec, epochs: u64) -> Vec<String> {
        let of = |option: &str, value: &dyn ToString| [option.to_owned(), value.to_string()];
        [
            of("--model", model),
            of("--epochs", &epochs),
            of("--batch-size", &BATCH),
            of("--microbatches", &self.microbatches),
            of("--train-limit", &self.samples),
            of("--test-limit", &100),
            of("--lr-schedule", &"constant"),
            of("--learning-rate", &0.01),
            of("--warmup-steps", &10),
            of("--checkpoint-every", &self.checkpoint_every),
        ]
        .concat()
    }

    /// The model for the undisturbed run: the same bits, as fast as it can.
    pub(super) fn undisturbed_model(&self) -> ModelSpec {
        match &self.model {
            ModelSpec::Synthetic(spec) => {
                let mut spec = *spec;
                (spec.per_sample, spec.jitter) = (Duration::ZERO, 0.0);
                ModelSpec::Synthetic(spec)
            }
            other => other.clone(),
        }
    }

    /// The epochs that hold so many steps and one more at least.
    pub(super) fn epochs_of(&self, steps: u64) -> u64 {
        steps / (self.samples as u64).div_ceil(BATCH) + 1
    }

    /// What repeats the run.
    #[must_use]
    pub fn command(&self) -> String {
        let mut text = format!(
            "cargo run -p tally-tools --bin chaos -- --seed {} --minutes {} --action-every {} --workers {} --guests {} --encores {} \
             --microbatches {} --model {} --samples {} --checkpoint-every {}",
            self.seed,
            self.minutes,
            self.action_every,
            self.workers,
            self.guests,
            self.encores,
            self.microbatches,
            self.model,
            self.samples,
            self.checkpoint_every
        );
        if let Some(most) = self.recomputed_at_most {
            let _ = write!(text, " --recomputed-at-most {most}");
        }
        if self.sharded {
            text += " --sharded";
        }
        if self.no_namespaces {
            text += " --no-namespaces";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_it_prints_repeats_it() {
        let options = Options {
            seed: 7,
            minutes: 0.25,
            no_namespaces: true,
            recomputed_at_most: Some(1),
            ..Options::default()
        };
        let command = options.command();
        let words = command.split(" -- ").nth(1).unwrap().split(' ');
        let again = Options::parse_from(["chaos"].into_iter().chain(words));
        assert_eq!(again.settings(false), options.settings(false));
        assert_eq!(again.command(), command);
    }

    #[test]
    fn epochs_hold_one_step_more() {
        let options = Options { samples: 6000, ..Options::default() };
        // 94 steps an epoch.
        assert_eq!([0, 93, 94, 95].map(|steps| options.epochs_of(steps)), [1, 1, 2, 2]);
    }
}
