//! A run's steps computed again on one machine, from a checkpoint or the initial state.
//!
//! It is the cluster's own arithmetic with one worker that has every leaf: the engine's
//! gradients, the sum along the tree (**SUM-1**), the norm, and the update by both
//! the master copy and the engine's replica, which must agree (**REP-1**). What a step gives
//! can then be compared with what the journal says of it (**RESUME-1**).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tally_checkpoint as checkpoint;
use tally_coordinator::dataset::{Dataset, microbatch};
use tally_coordinator::server::master_state::MasterState;
use tally_coordinator::server::reduction_buffers::ReductionBuffers;
use tally_core::sampler::EpochSampler;
use tally_numerics::digest::Digest;
use tally_numerics::reduction::ReductionStep;
use tally_numerics::schema::{Named, Sums};
use tally_numerics::state::State;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::{chunk_range, chunks, norm};
use tally_proto::convert::Microbatch;
use tally_proto::pool::Pool;
use tally_run::config::RunConfig;
use tally_run::journal::StepLine;
use tally_run::record::Record;
use tally_worker::engine::{Engine, apply_whole};

use crate::prepare::initial_parameters;
use crate::program::CoordinatorProgram;

/// Where a replay starts.
pub struct Start {
    /// The committed step; 0 for the initial state.
    pub step: u64,
    state: State,
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
    pub fn nearest<P: CoordinatorProgram>(program: &P, record: &Record, step: u64) -> anyhow::Result<Self> {
        let mut skipped = Vec::new();
        let listed = checkpoint::list(&record.path.join("checkpoints"))?;
        for (at, path) in listed.into_iter().rev().filter(|(at, _)| (1..=step).contains(at)) {
            match checkpoint::read(&path) {
                Ok(c) if of_this_run(record, &c.meta) => {
                    return Ok(Self { step: at, state: c.state, skipped });
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
        let parameters = initial_parameters(program, &record.config)?;
        let state = record.config.initial_state(parameters);
        Ok(Self { step: 0, state, skipped })
    }
}

/// Whether a checkpoint is of this run, and the state that its journal has.
fn of_this_run(record: &Record, meta: &checkpoint::Meta) -> bool {
    meta.run == record.config.run
        && meta.tensors == record.config.tensors
        && meta.moments == record.config.optimizer.moments()
        && record.step(meta.step).is_some_and(|line| line.digest == meta.digest)
}

/// What a step gave when it was computed again.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputed {
    /// The step.
    pub step: u64,
    /// Digest of parameters and moments after it.
    pub digest: Digest,
    /// Means over the batch: `total`, then each part.
    pub loss: Named,
    /// The learning rate.
    pub learning_rate: f32,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
}

impl Recomputed {
    /// What the journal says otherwise of this step, in words: a part, what is recorded of it,
    /// and what was computed. Empty if all is equal, to the last bit.
    #[must_use]
    pub fn differences(&self, line: &StepLine) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        if self.digest != line.digest {
            found.push(("digest".to_owned(), line.digest.to_string(), self.digest.to_string()));
        }
        let losses = self.loss.iter().map(|(name, &computed)| {
            let recorded = line.loss.get(name).copied().unwrap_or(f64::NAN);
            (if name == "total" { "loss".to_owned() } else { format!("loss of {name}") }, recorded, computed)
        });
        let numbers = losses.chain([
            ("learning rate".to_owned(), line.learning_rate.into(), self.learning_rate.into()),
            ("gradient norm".to_owned(), line.gradient_norm, self.gradient_norm),
        ]);
        let unequal = numbers.filter(|(_, recorded, computed)| recorded.to_bits() != computed.to_bits());
        found.extend(
            unequal.map(|(what, recorded, computed)| (what, recorded.to_string(), computed.to_string())),
        );
        found
    }
}

/// A run in the state after one of its steps, ready to compute the next.
pub struct Replay {
    config: RunConfig,
    tree: Tree,
    steps: u64,
    train: Arc<dyn Dataset>,
    sampler: EpochSampler,
    engine: Box<dyn Engine>,
    master: MasterState,
    buffers: ReductionBuffers,
    pool: Pool,
    step: u64,
}

impl Replay {
    /// A run at `start`, computed by `engine` on the run's training samples.
    ///
    /// # Errors
    /// If the run's number of microbatches is none.
    pub fn new(
        record: &Record,
        start: Start,
        train: Arc<dyn Dataset>,
        mut engine: Box<dyn Engine>,
    ) -> anyhow::Result<Self> {
        let config = record.config.clone();
        let damaged = || format!("{}/run.json is damaged", record.path.display());
        let tree = Tree::new(config.microbatches).with_context(damaged)?;
        let master = MasterState::new(&start.state);
        engine.load(start.state);
        Ok(Self {
            tree,
            steps: record.schedule.steps_per_epoch() as u64 * u64::from(config.epochs),
            train,
            sampler: EpochSampler::new(record.schedule),
            engine,
            master,
            buffers: ReductionBuffers::new(config.wire_dtype, &config.tensors),
            pool: Pool::default(),
            step: start.step,
            config,
        })
    }

    /// The step whose state this is.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.step
    }

    /// What decides the bits of the gradients here.
    #[must_use]
    pub fn numerics_class(&self) -> String {
        self.engine.numerics_class()
    }

    /// The device, for people.
    #[must_use]
    pub fn device(&self) -> String {
        self.engine.device_name()
    }

    /// SHA-256 of the parameters, as checkpoints and the summary have it.
    #[must_use]
    pub fn parameters_sha256(&self) -> String {
        self.config.tensors.sha256(&self.master.snapshot().parameters())
    }

    /// Computes the next step.
    ///
    /// # Errors
    /// If the device fails, or its update has other bits than the host's.
    pub fn advance(&mut self) -> anyhow::Result<Recomputed> {
        let step = self.step + 1;
        let (gradient, losses) = self.gradient(step)?;
        let elements = gradient.len();
        self.buffers.reset(chunks(elements));
        for index in 0..chunks(elements) {
            let range = chunk_range(elements, index);
            let mut chunk = self.pool.take(range.len());
            chunk.copy_from_slice(&gradient[range]);
            self.buffers.insert(Node::ROOT, index as u32, chunk);
            self.buffers.apply(ReductionStep::Ready { node: Node::ROOT, chunk: index as u32 });
        }
        let optimizer = &self.config.optimizer;
        let weight = self.config.schema.mean_weight(&losses);
        let (clip, gradient_norm) =
            norm::update_factor(self.buffers.squared_norm(), optimizer.clip_norm, weight);
        let learning_rate = optimizer.rate(step, self.steps);
        let update = optimizer.update(step, learning_rate, clip, self.config.tensors.segments());
        let digest = self.master.apply(&update, self.buffers.root());
        let replica = apply_whole(&mut *self.engine, &update, &gradient)?;
        ensure!(
            replica == digest,
            "step {step}: the update on {} has digest {replica}, on the host {digest}; this device does not round as \
             it must, so verify on another",
            self.engine.device_name()
        );
        self.engine.commit();
        self.step = step;
        Ok(Recomputed {
            step,
            digest,
            loss: self.config.schema.named_losses(&losses),
            learning_rate,
            gradient_norm,
        })
    }

    /// The gradient of a step's mean loss, summed along the tree, and the means of the losses.
    fn gradient(&mut self, step: u64) -> anyhow::Result<(Vec<f32>, Sums)> {
        let samples = self.sampler.batch_len(step);
        let mut microbatches = Vec::with_capacity(self.tree.microbatches() as usize);
        for leaf in 0..self.tree.microbatches() {
            let ids = self.sampler.leaf_ids(self.tree, step, leaf);
            microbatches.push(microbatch(&*self.train, &ids)?.at(step, leaf));
        }
        let microbatches: Vec<&Microbatch> = microbatches.iter().collect();
        let mut gradient = vec![0.0; self.engine.manifest().trained_len()];
        let losses = self.engine.node_gradient(
            &microbatches,
            1.0 / samples as f32,
            self.config.wire_dtype,
            &mut gradient,
            &mut |_| {},
        )?;
        let losses = losses.into_iter().zip(&microbatches).map(|(sums, m)| (!m.is_empty()).then_some(sums));
        Ok((gradient, Sums::along_tree(losses, 0).scaled(1.0 / samples as f64)))
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
