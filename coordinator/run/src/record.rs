//! A run, read from its directory without changing it: no lock is taken, nothing is cut off and nothing is removed.
//! So it can be read while the run continues, and from a read-only directory.

use std::fs;
use std::path::{Path, PathBuf};

use tally_numerics::order::{BadSchedule, Schedule};
use thiserror::Error;

use super::config::RunConfig;
use super::directory::{self, DirectoryError};
use super::journal::{self, JournalError, Line, StepLine};
use super::summary::Summary;

/// Why a run cannot be read from a directory.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It is not a run directory, or its configuration cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The configuration has no schedule.
    #[error("{} is damaged: {source}", path.display())]
    Schedule {
        /// `run.json`.
        path: PathBuf,
        /// What is wrong with it.
        source: BadSchedule,
    },
    /// A step's line cannot be that of this run.
    #[error(
        "{} is not this run's: step {step} is in epoch {epoch} with {samples} samples, where run.json gives epoch \
         {wanted_epoch} and {wanted_samples} samples",
        path.display()
    )]
    Step {
        /// The journal.
        path: PathBuf,
        /// The step.
        step: u64,
        /// Its epoch in the journal.
        epoch: u32,
        /// Its samples in the journal.
        samples: usize,
        /// Its epoch by the schedule.
        wanted_epoch: u32,
        /// Its samples by the schedule.
        wanted_samples: usize,
    },
}

/// A run, as its directory records it.
#[derive(Debug)]
pub struct Record {
    /// The directory.
    pub path: PathBuf,
    /// `run.json`.
    pub config: RunConfig,
    /// The order of the samples.
    pub schedule: Schedule,
    /// The journal's steps: step `n` at `n - 1`.
    pub steps: Vec<StepLine>,
    /// The journal's other lines, in their order.
    pub others: Vec<Line>,
    /// `summary.json`, if there is one that can be read.
    pub summary: Option<Summary>,
}

impl Record {
    /// Reads `run.json`, the journal's whole lines and `summary.json`, and checks that the
    /// steps follow one another from 1 and that each has the samples that the schedule gives
    /// it, so that every epoch's add up to all (**DATA-1**).
    ///
    /// # Errors
    /// [`RecordError`] for what cannot be read, or is not the record of one run.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let config = directory::config(path)?;
        let file = path.join("run.json");
        let schedule = Schedule::new(config.seed, config.data.train_samples, config.batch_size)
            .map_err(|source| RecordError::Schedule { path: file, source })?;
        let file = path.join("journal.jsonl");
        // Before the journal: a run that goes on writes its checkpoints after it.
        let checkpoints = tally_checkpoint::list(&path.join("checkpoints")).unwrap_or_default();
        let text = fs::read(&file).map_err(|source| JournalError::Io {
            what: "read",
            path: file.clone(),
            source,
        })?;
        let (lines, _) = journal::parse(&file, &text)?;
        let (steps, others) = split(&file, lines, &schedule)?;
        let last = steps.len() as u64;
        for (step, checkpoint) in checkpoints.into_iter().rev().take_while(|(step, _)| *step > last) {
            if tally_checkpoint::read(&checkpoint).is_ok_and(|whole| whole.meta.run == config.run) {
                return Err(JournalError::Short { path: file, last, checkpoint, step }.into());
            }
        }
        let summary = fs::read(path.join("summary.json")).ok();
        let summary = summary.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Self { path: path.into(), config, schedule, steps, others, summary })
    }

    /// The newest step in the journal; 0 if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.steps.len() as u64
    }

    /// A step's line.
    #[must_use]
    pub fn step(&self, step: u64) -> Option<&StepLine> {
        self.steps.get(usize::try_from(step.checked_sub(1)?).ok()?)
    }
}

/// The lines of the steps, which must be those of the schedule, and the others.
fn split(
    path: &Path,
    lines: Vec<Line>,
    schedule: &Schedule,
) -> Result<(Vec<StepLine>, Vec<Line>), RecordError> {
    let (mut steps, mut others): (Vec<StepLine>, Vec<Line>) = Default::default();
    for line in lines {
        let step = match line {
            Line::Step(step) => step,
            other => {
                others.push(other);
                continue;
            }
        };
        let wanted = steps.len() as u64 + 1;
        if step.step != wanted {
            return Err(JournalError::Order { path: path.into(), found: step.step, wanted }.into());
        }
        let (wanted_epoch, index) = schedule.position(wanted);
        let wanted_samples = schedule.batch_range(index).len();
        let StepLine { epoch, samples, .. } = step;
        if (epoch, samples) != (wanted_epoch, wanted_samples) {
            let (path, step) = (path.into(), step.step);
            return Err(RecordError::Step { path, step, epoch, samples, wanted_epoch, wanted_samples });
        }
        steps.push(step);
    }
    Ok((steps, others))
}
