//! A run's steps computed again on one machine, from a checkpoint or the initial state.
//!
//! It is the cluster's own arithmetic with one worker that has every leaf: the engine's
//! gradients, the sum along the tree (**SUM-1**), the arena's norm, and the update by both
//! the referee and the engine's replica, which must agree (**REP-1**). What a step gives
//! can then be compared with what the journal says of it (**RESUME-1**).

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use tally_checkpoint as checkpoint;
use tally_data::{Mnist, Paired};
use tally_exact::digest::Digest;
use tally_exact::loss::LossParts;
use tally_exact::sum::Fold;
use tally_exact::tree::{Node, Tree};
use tally_exact::update::Update;
use tally_exact::{CHUNK, chunk_range, chunks, init, norm};
use tally_proto::pool::Pool;
use tally_worker::engine::{Engine, ModelSpec, backend};

use super::config::RunConfig;
use super::journal::{LossLine, StepLine};
use super::record::Record;
use crate::core::deck::Deck;
use crate::core::reduction::Due;
use crate::shell::arena::Arena;
use crate::shell::referee::Referee;

/// Where a replay starts.
pub struct Start {
    /// The committed step; 0 for the initial state.
    pub step: u64,
    parameters: Vec<f32>,
    momentum: Vec<f32>,
    /// Newer checkpoints that could not be used: the step, and why.
    pub skipped: Vec<(u64, String)>,
}

impl Start {
    /// The newest whole checkpoint of this run at or before `step`, or else the run's initial
    /// state. One that is damaged, or not the state that the journal has, is passed over.
    ///
    /// # Errors
    /// If the checkpoints can't be listed, or the weights that the run started from are not
    /// there any more.
    pub fn nearest(record: &Record, step: u64) -> anyhow::Result<Self> {
        let mut skipped = Vec::new();
        let listed = checkpoint::list(&record.path.join("checkpoints"))?;
        for (at, path) in listed.into_iter().rev().filter(|(at, _)| (1..=step).contains(at)) {
            match checkpoint::read(&path) {
                Ok(c) if of_this_run(record, &c.meta) => {
                    return Ok(Self { step: at, parameters: c.parameters, momentum: c.momentum, skipped });
                }
                Ok(c) => skipped.push((
                    at,
                    format!(
                        "{} is not the state of step {at} in the journal: its digest is {}",
                        path.display(),
                        c.meta.digest
                    ),
                )),
                Err(error) => skipped.push((at, error.to_string())),
            }
        }
        let parameters = initial(&record.config)?;
        let momentum = vec![0.0; parameters.len()];
        Ok(Self { step: 0, parameters, momentum, skipped })
    }
}

/// Whether a checkpoint is of this run, and the state that its journal has.
fn of_this_run(record: &Record, meta: &checkpoint::Meta) -> bool {
    meta.run == record.config.run
        && meta.tensors == record.config.tensors
        && record.step(meta.step).is_some_and(|line| line.digest == meta.digest)
}

/// The parameters that a run started from: drawn from its seed, or those of its `--init`.
///
/// # Errors
/// If the file of `--init` is not there, or does not hold what it did.
pub fn initial(config: &RunConfig) -> anyhow::Result<Vec<f32>> {
    let Some(from) = &config.init else { return Ok(init::parameters(&config.tensors, config.seed)) };
    let weights = checkpoint::read_weights(from.path.as_ref(), &config.tensors).with_context(|| {
        format!(
            "the weights that the run started from were at {}: if they have moved, say where to with --init",
            from.path
        )
    })?;
    ensure!(
        config.tensors.sha256(&weights.values) == from.sha256,
        "{} does not hold the weights that the run started from; name the file that does with --init",
        from.path
    );
    Ok(weights.values)
}

/// What a step gave when it was computed again.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputed {
    /// The step.
    pub step: u64,
    /// Digest of parameters and momentum after it.
    pub digest: Digest,
    /// Means over the batch.
    pub loss: LossParts,
    /// The learning rate.
    pub learning_rate: f32,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
}

impl Recomputed {
    /// What the journal says otherwise of this step, in words: a part, what is recorded of it,
    /// and what was computed. Empty if all is equal, to the last bit.
    #[must_use]
    pub fn differences(&self, line: &StepLine) -> Vec<(&'static str, String, String)> {
        let loss = LossLine::from(self.loss);
        let mut found = Vec::new();
        if self.digest != line.digest {
            found.push(("digest", line.digest.to_string(), self.digest.to_string()));
        }
        let numbers = [
            ("loss", line.loss.total, loss.total),
            ("loss of the digit", line.loss.label, loss.label),
            ("loss of the sum", line.loss.sum, loss.sum),
            ("loss of the difference", line.loss.difference, loss.difference),
            ("learning rate", line.learning_rate.into(), self.learning_rate.into()),
            ("gradient norm", line.gradient_norm, self.gradient_norm),
        ];
        let unequal =
            numbers.iter().filter(|(_, recorded, computed)| recorded.to_bits() != computed.to_bits());
        found.extend(
            unequal.map(|(what, recorded, computed)| (*what, recorded.to_string(), computed.to_string())),
        );
        found
    }
}

/// A run in the state after one of its steps, ready to compute the next.
pub struct Replay {
    config: RunConfig,
    tree: Tree,
    steps: u64,
    train: Paired,
    deck: Deck,
    engine: Box<dyn Engine>,
    referee: Referee,
    arena: Arena,
    pool: Pool,
    buffers: Vec<Vec<f32>>,
    step: u64,
}

impl Replay {
    /// A run at `start`. `data` is the run's; the engine is the run's network on the device
    /// that `build` is asked for.
    ///
    /// # Errors
    /// If this version has another network or other chunks than the run, the data is not the
    /// run's, or the device can't be used.
    pub fn new(
        record: &Record,
        start: Start,
        data: Mnist,
        build: impl FnOnce(&ModelSpec) -> anyhow::Result<Box<dyn Engine>>,
    ) -> anyhow::Result<Self> {
        let (config, path) = (record.config.clone(), record.path.display());
        ensure!(
            config.tensors == backend::manifest(&config.model),
            "{path} was trained with another {} network than this version has; use Tally {}",
            config.model,
            config.tally
        );
        ensure!(
            config.chunk == CHUNK,
            "{path} was trained with chunks of {} elements, this version has {CHUNK}; use Tally {}",
            config.chunk,
            config.tally
        );
        ensure!(
            data.sha256() == config.data.sha256,
            "the data is not what {path} was trained on; name the directory with the same files by --data-dir"
        );
        let tree = Tree::new(config.shards).with_context(|| format!("{path}/run.json is damaged"))?;
        // A synthetic network takes its time for measurements only; its bits don't depend on it.
        let mut model = config.model.clone();
        if let ModelSpec::Synthetic(spec) = &mut model {
            spec.per_sample = std::time::Duration::ZERO;
        }
        let mut engine = build(&model)?;
        let referee = Referee::new(&start.parameters, &start.momentum);
        engine.load(start.parameters, start.momentum);
        Ok(Self {
            tree,
            steps: record.schedule.steps_per_epoch() as u64 * u64::from(config.epochs),
            train: Paired::train(data.train, config.seed),
            deck: Deck::new(record.schedule),
            engine,
            referee,
            arena: Arena::default(),
            pool: Pool::default(),
            buffers: Vec::new(),
            step: start.step,
            config,
        })
    }

    /// The step whose state this is.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.step
    }

    /// The device in words.
    #[must_use]
    pub fn device(&self) -> String {
        self.engine.device()
    }

    /// SHA-256 of the parameters, as checkpoints and the summary have it.
    #[must_use]
    pub fn parameters_sha256(&self) -> String {
        self.config.tensors.sha256(&self.referee.snapshot().flat(false))
    }

    /// Computes the next step.
    ///
    /// # Errors
    /// If the device fails, or its update has other bits than the host's.
    pub fn advance(&mut self) -> anyhow::Result<Recomputed> {
        let step = self.step + 1;
        let samples = self.deck.batch_len(step);
        let (gradient, loss) = self.gradient(step, samples)?;
        let elements = gradient.len();
        self.arena.reset(chunks(elements));
        for index in 0..chunks(elements) {
            let range = chunk_range(elements, index);
            let mut chunk = self.pool.take(range.len());
            chunk.copy_from_slice(&gradient[range]);
            self.arena.put(Node::ROOT, index as u32, chunk);
            self.arena.perform(Due::Emit { chunk: index as u32 });
        }
        let recipe = self.config.optimizer;
        let squared = self.arena.squared_norm();
        let update = Update {
            learning_rate: recipe.rate(step, self.steps),
            momentum: recipe.momentum,
            clip: norm::clip_factor(squared, recipe.clip_norm),
        };
        let digest = self.referee.apply(update, self.arena.root());
        let replica = (0..chunks(elements)).fold(Digest::default(), |digest, index| {
            let range = chunk_range(elements, index);
            digest.and(self.engine.apply(update, range.start, &gradient[range]))
        });
        let replica = replica.and(self.engine.finish()?);
        ensure!(
            replica == digest,
            "step {step}: the update on {} has digest {replica}, on the host {digest}; this device does not round as \
             it must, so verify on another",
            self.engine.device()
        );
        self.engine.commit();
        self.buffers.push(gradient);
        self.step = step;
        Ok(Recomputed {
            step,
            digest,
            loss,
            learning_rate: update.learning_rate,
            gradient_norm: squared.sqrt(),
        })
    }

    /// The gradient of a step's mean loss, summed along the tree, and that loss.
    fn gradient(&mut self, step: u64, samples: usize) -> anyhow::Result<(Vec<f32>, LossParts)> {
        let (elements, dtype) = (self.engine.manifest().len(), self.config.wire_dtype);
        let mut fold: Fold<Vec<f32>> = Fold::default();
        let mut losses = Vec::with_capacity(self.tree.shards() as usize);
        for leaf in 0..self.tree.shards() {
            let ids = self.deck.leaf_ids(self.tree, step, leaf);
            let value = if ids.is_empty() {
                losses.push(None);
                None
            } else {
                let mut out = self.buffers.pop().unwrap_or_default();
                out.resize(elements, 0.0);
                let dealt = self.train.samples(&ids)?;
                losses.push(Some(self.engine.gradient(
                    &dealt,
                    1.0 / samples as f32,
                    &mut out,
                    &mut |_| {},
                )?));
                dtype.round(&mut out);
                Some(out)
            };
            let free = &mut self.buffers;
            fold.push(value, |mut left: Vec<f32>, right: Vec<f32>| {
                dtype.add(&mut left, &right);
                free.push(right);
                left
            });
        }
        let gradient = fold.finish().context("a step without samples")?;
        Ok((gradient, LossParts::along_tree(losses).scaled(1.0 / samples as f64)))
    }
}

/// A checkpoint of this run, or the end of it, that a replay has reached.
pub struct Milestone {
    /// Where it is.
    pub path: PathBuf,
    /// Its digest and its parameters' SHA-256, or why it can't be read.
    pub found: Result<(Digest, String), String>,
}

/// What lies on disk of the state after `step`: its checkpoint, and the summary if the run
/// ended there.
#[must_use]
pub fn milestones(record: &Record, step: u64) -> Vec<Milestone> {
    let path = checkpoint::directory(&record.path.join("checkpoints"), step);
    let mut found = Vec::new();
    match checkpoint::read(&path) {
        Ok(c) => found.push(Milestone { path, found: Ok((c.meta.digest, c.meta.parameters_sha256)) }),
        Err(checkpoint::CheckpointError::Absent { .. }) => {}
        // One that is just being removed, as a run that goes on does, is none either.
        Err(_) if !path.exists() => {}
        Err(error) => found.push(Milestone { path, found: Err(error.to_string()) }),
    }
    if let Some(summary) = record.summary.as_ref().filter(|s| s.steps == step) {
        let read = summary.digest.parse().map(|digest| (digest, summary.parameters_sha256.clone()));
        found.push(Milestone { path: record.path.join("summary.json"), found: read });
    }
    found
}
