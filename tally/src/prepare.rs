//! A run as it is before the first step of this start: made anew, or read from its directory.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tally_checkpoint::Weights;
use tally_coordinator::server::master_state::MasterState;
use tally_core::optimizer::LrSchedule;
use tally_run::config::{InitConfig, RunConfig};
use tally_run::directory::RunDirectory;
use tally_run::journal::{History, Journal, JournalError};

use crate::options::TrainOptions;
use crate::program::{CoordinatorProgram, Splits};

/// A run as it is before its first step of this start.
pub struct Prepared {
    /// Its configuration.
    pub config: RunConfig,
    /// Its directory.
    pub directory: RunDirectory,
    /// Its journal.
    pub journal: Journal,
    /// What the journal says of it.
    pub history: History,
    /// Its samples.
    pub data: Splits,
    /// The committed step of the state.
    pub step: u64,
    /// The state.
    pub master: MasterState,
    /// The newest checkpoint's step, and when it was written.
    pub checkpoint: Option<(u64, std::time::SystemTime)>,
}

/// A new run.
///
/// # Errors
/// If an option cannot work, or something cannot be read or written, in one line.
pub fn new_run<P: CoordinatorProgram>(
    program: &P,
    options: &TrainOptions<P::Options>,
) -> anyhow::Result<Prepared> {
    let run = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let (mut config, data) = options.training.configure(program, run, options.workers)?;
    config.checkpoint_every = options.checkpoint_every;
    config.keep_checkpoints = options.keep_checkpoints.map_or(config.keep_checkpoints, |k| k as usize);
    config.audit_rate = options.audit_rate.unwrap_or(0.0);
    let parameters = match &options.training.init {
        None => program.initial_parameters(&config)?,
        Some(path) => {
            let partial = options.training.init_partial;
            let weights = weights(program, &config, path, partial)?;
            if !weights.missing.is_empty() {
                tracing::info!("{} lacks {}: initialised anew", path.display(), weights.missing.join(", "));
            }
            if !weights.taken_off.is_empty() {
                tracing::info!("{}: {} is taken off the tensors' names", path.display(), weights.taken_off);
            }
            if !weights.unknown.is_empty() {
                tracing::warn!(
                    "{} has tensors that {} has not: {}",
                    path.display(),
                    config.program.variant,
                    weights.unknown.join(", ")
                );
            }
            let sha256 = config.tensors.sha256(&weights.values);
            config.init = Some(InitConfig { path: path.as_path().into(), sha256, partial });
            weights.values
        }
    };
    let directory = RunDirectory::create(options.run_dir.as_deref())?;
    let (journal, history) = Journal::open(&directory.file("journal.jsonl"))?;
    // A run can start again from nothing, so its first state is kept as well.
    directory.write_json("run.json", &config)?;
    let master = MasterState::new(&config.initial_state(parameters));
    Ok(Prepared { config, directory, journal, history, data, step: 0, master, checkpoint: None })
}

/// Checks the optimizer of a run on record, and gives it the learning rates that the program says.
///
/// # Errors
/// If it cannot be continued, in one line.
pub fn complete_optimizer<P: CoordinatorProgram>(program: &P, config: &mut RunConfig) -> anyhow::Result<()> {
    config.check_optimizer().map_err(anyhow::Error::msg).context("run.json is damaged")?;
    if config.optimizer.lr_schedule == LrSchedule::Program {
        let rates = program.learning_rates(config, config.steps()?)?;
        let rates =
            rates.context("the run began with the program's own learning-rate schedule, and this build of the program has none; use the build that began the run")?;
        config.optimizer.set_rates(rates).map_err(anyhow::Error::msg)?;
        config.optimizer.check_rates(config.steps()?).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// A run that was stopped, or whose coordinator was killed (**RESUME-1**).
///
/// # Errors
/// If the directory is not whole, or the data or an option is not what the run had, in one line.
pub fn resumed_run<P: CoordinatorProgram>(
    program: &P,
    options: &TrainOptions<P::Options>,
    path: &Path,
) -> anyhow::Result<Prepared> {
    let (directory, mut config) = RunDirectory::open(path)?;
    let started_from = config.init.clone();
    options.training.adjust(program, &mut config)?;
    config.workers = options.workers as usize;
    config.checkpoint_every = options.checkpoint_every.or(config.checkpoint_every);
    config.keep_checkpoints = options.keep_checkpoints.map_or(config.keep_checkpoints, |k| k as usize);
    config.audit_rate = options.audit_rate.unwrap_or(config.audit_rate);
    check_build(program, &config, path)?;
    complete_optimizer(program, &mut config)
        .with_context(|| format!("{} cannot be resumed", path.display()))?;
    if config.init != started_from {
        // The new place is checked now, even if a checkpoint makes it unnecessary.
        initial_parameters(program, &config)?;
    }
    let data = program.recorded_data(&config, None)?;
    let (journal, history) = Journal::open(&directory.file("journal.jsonl"))?;
    let last = history.digests.last_key_value().map_or(0, |(step, _)| *step);
    tally_checkpoint::clean(&directory.checkpoints())?;
    let found = tally_checkpoint::newest_whole(&directory.checkpoints(), None)?;
    for skipped in &found.skipped {
        tracing::warn!("skipped a damaged checkpoint: {}", skipped.1);
    }
    let mut written = None;
    let (step, master) = match found.checkpoint {
        Some(checkpoint) => {
            let (meta, step) = (&checkpoint.meta, checkpoint.meta.step);
            if meta.run == config.run && step > last {
                let checkpoint = tally_checkpoint::directory(&directory.checkpoints(), step);
                let path = directory.file("journal.jsonl");
                return Err(JournalError::Short { path, last, checkpoint, step }.into());
            }
            let files = std::fs::metadata(tally_checkpoint::directory(&directory.checkpoints(), step));
            written = files.and_then(|files| files.modified()).ok().map(|at| (step, at));
            ensure!(
                meta.run == config.run && history.digests.get(&step) == Some(&meta.digest),
                "checkpoint {step} in {} is not of this run's journal; remove it and resume again",
                path.display()
            );
            let (kept, wanted) = (meta.moments.join(", "), config.optimizer.moments().join(", "));
            ensure!(
                kept == wanted,
                "checkpoint {step} in {} has the moments {kept} and the run's optimizer keeps {wanted}; it is not of this \
                 run: remove it and resume again",
                path.display()
            );
            (step, MasterState::new(&checkpoint.state))
        }
        None => {
            if last > 0 {
                tracing::warn!("there is no whole checkpoint; computing again from the start");
            }
            let parameters = initial_parameters(program, &config)?;
            (0, MasterState::new(&config.initial_state(parameters)))
        }
    };
    directory.write_json("run.json", &config)?;
    Ok(Prepared { config, directory, journal, history, data, step, master, checkpoint: written })
}

/// Whether this build computes the run as the one that began it.
///
/// # Errors
/// If its model or its chunks are others, with the version to use.
pub fn check_build<P: CoordinatorProgram>(
    program: &P,
    config: &RunConfig,
    path: &Path,
) -> anyhow::Result<()> {
    ensure!(
        config.program.name == program.name(),
        "{} is a run of the program {:?}, and this is {:?}; use the program that began it",
        path.display(),
        config.program.name,
        program.name()
    );
    ensure!(
        config.tensors == program.manifest(&config.program)?,
        "{} was trained with another {} model than this program has: its tensors, their order or their groups differ; use \
         the program that began it, with Tally {}",
        path.display(),
        config.program.variant,
        config.tally
    );
    ensure!(
        config.chunk == tally_numerics::norm::BLOCK,
        "{} was trained with blocks of {} elements in the gradient's norm, this version has {}; use Tally {}",
        path.display(),
        config.chunk,
        tally_numerics::norm::BLOCK,
        config.tally
    );
    Ok(())
}

/// The weights of `--init`, over initial parameters if the file may lack tensors.
fn weights<P: CoordinatorProgram>(
    program: &P,
    config: &RunConfig,
    path: &Path,
    partial: bool,
) -> anyhow::Result<Weights> {
    Ok(if partial {
        let initial = program.initial_parameters(config)?;
        tally_checkpoint::read_partial_weights(path, &config.tensors, initial)?
    } else {
        tally_checkpoint::read_weights(path, &config.tensors)?
    })
}

/// The parameters that a run started from: drawn from its seed, or those of its `--init`.
///
/// # Errors
/// If the file of `--init` is not there, or does not hold what it did.
pub fn initial_parameters<P: CoordinatorProgram>(
    program: &P,
    config: &RunConfig,
) -> anyhow::Result<Vec<f32>> {
    let Some(from) = &config.init else { return program.initial_parameters(config) };
    let weights = weights(program, config, from.path.as_ref(), from.partial).with_context(|| {
        format!(
            "the weights that the run started from must be at {}; if they have moved, name their new path with --init",
            from.path
        )
    })?;
    if config.tensors.sha256(&weights.values) != from.sha256 {
        bail!(
            "{} does not hold the weights that the run started from; name the file that does with --init",
            from.path
        );
    }
    Ok(weights.values)
}
