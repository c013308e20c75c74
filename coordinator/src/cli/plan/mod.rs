//! `coordinator plan`: what a cluster would do, and what would limit it.

mod measured;
mod show;
pub mod units;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use tally_data::samples::PIXELS;
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;
use tally_proto::MAX_LEAF_SAMPLES;
use tally_worker::engine::{ModelSpec, backend};

use self::measured::Measured;
use self::units::{Bits, Count, Seconds, Workers};
use super::options::BATCH_SIZE;
use crate::plan::advice::{self, Change, Limit};
use crate::plan::cluster::{FIRST_CHUNK, SAMPLE};
use crate::plan::{Cluster, Computing, Costs, Network, Prediction, predict};

/// Options of `coordinator plan`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("time").required(true).args(["sample_time", "step_time", "run"]))]
pub struct PlanOptions {
    /// Workers, all alike: one number, several, or a range
    #[arg(long, value_name = "N,N..N", default_value = "1..64")]
    pub workers: Workers,

    /// How long a worker computes a sample
    #[arg(long, value_name = "TIME", help_heading = "Computing")]
    pub sample_time: Option<Seconds>,

    /// How long one worker computes a whole step's batch
    #[arg(long, value_name = "TIME", help_heading = "Computing")]
    pub step_time: Option<Seconds>,

    /// Take times, model, batch, micro-shards and the rest from this run, unless they are given
    #[arg(long, value_name = "RUN_DIR", help_heading = "Computing")]
    pub run: Option<PathBuf>,

    /// The network, whose size is what counts here [default: reference]
    #[arg(long, value_name = "MODEL", conflicts_with = "parameters", help_heading = "Computing")]
    pub model: Option<ModelSpec>,

    /// Its number of parameters instead, such as 25M
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub parameters: Option<Count>,

    /// Samples of a step, over all workers [default: 64]
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub batch_size: Option<usize>,

    /// Micro-shards [default: 8]
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub shards: Option<u32>,

    /// What gradients travel as: f32 or bf16 [default: f32]
    #[arg(long, value_name = "DTYPE", help_heading = "Computing")]
    pub wire_dtype: Option<WireDtype>,

    /// The gradient is not clipped (--clip-norm none), so that the update need not wait for all of it
    #[arg(long, help_heading = "Computing")]
    pub unclipped: bool,

    /// Bits a second of the coordinator's link, the same both ways
    #[arg(long, value_name = "RATE", default_value = "10G", help_heading = "Network")]
    pub bandwidth: Bits,

    /// Bits a second of each worker's link [default: as --bandwidth]
    #[arg(long, value_name = "RATE", help_heading = "Network")]
    pub worker_bandwidth: Option<Bits>,

    /// From a worker to the coordinator and back, as ping shows it
    #[arg(long, value_name = "TIME", default_value = "0.2ms", help_heading = "Network")]
    pub round_trip: Seconds,

    /// Cores of the coordinator's machine [default: those of this one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Machines")]
    pub cores: Option<u32>,

    /// The workers run on the coordinator's machine too, with a thread each and --no-shared-memory
    #[arg(long, help_heading = "Machines")]
    pub one_machine: bool,

    /// What messages, bytes and additions cost a processor, as `scaling calibrate` writes it [default:
    /// as measured for docs/scaling.md]
    #[arg(long, value_name = "FILE", help_heading = "Machines")]
    pub costs: Option<PathBuf>,

    /// Print it as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is said of one number of workers.
#[derive(Clone, Debug, serde::Serialize)]
struct Row {
    #[serde(flatten)]
    prediction: Prediction,
    limit: Limit,
    changes: Vec<Change>,
}

impl PlanOptions {
    /// The cluster with so many workers.
    fn cluster(&self, run: Option<&Measured>, costs: Costs, workers: usize) -> anyhow::Result<Cluster> {
        let batch_size = self.batch_size.or(run.map(|run| run.batch_size)).unwrap_or(BATCH_SIZE);
        ensure!(
            (1..=1 << 24).contains(&batch_size),
            "--batch-size is from 1 to {}, not {batch_size}",
            1 << 24
        );
        let shards = self.shards.or(run.map(|run| run.shards)).unwrap_or(8);
        let tree = Tree::new(shards).context("--shards")?;
        let leaf = batch_size.div_ceil(shards as usize);
        ensure!(
            leaf <= MAX_LEAF_SAMPLES,
            "--batch-size {batch_size} over --shards {shards} makes micro-shards of {leaf} samples; the most is \
             {MAX_LEAF_SAMPLES}: raise --shards"
        );
        let model = self.model.clone().unwrap_or_else(|| {
            run.filter(|_| self.parameters.is_none()).map_or(ModelSpec::Reference, |run| run.model.clone())
        });
        let parameters = self.parameters.map_or_else(|| backend::manifest(&model).len(), |count| count.0);
        let sample = match (self.sample_time, self.step_time, run) {
            (Some(Seconds(sample)), _, _) => sample,
            (_, Some(Seconds(step)), _) => step / batch_size as f64,
            (_, _, Some(run)) => run.sample_seconds,
            _ => anyhow::bail!("say how long a worker computes, with --sample-time, --step-time or --run"),
        };
        let wire_dtype = self.wire_dtype.or(run.map(|run| run.wire_dtype)).unwrap_or_default();
        // Tally's own kernels compute a subtree in one go, unless every leaf of it is to be rounded.
        let own = self.parameters.is_none() && model == ModelSpec::Reference;
        let synthetic = self.parameters.is_none() && matches!(model, ModelSpec::Synthetic(_));
        let Bits(bandwidth) = self.bandwidth;
        let worker = self.worker_bandwidth.map_or(bandwidth, |bits| bits.0);
        let network = match self.one_machine {
            true => Network::unlimited(),
            false => Network::of_bits(bandwidth, worker, self.round_trip.0),
        };
        Ok(Cluster {
            workers,
            parameters,
            wire_dtype,
            batch_size,
            tree,
            clipped: !self.unclipped && run.is_none_or(|run| run.clipped),
            computing: Computing {
                sample,
                subtree: 0.0,
                at_once: own,
                first_chunk: if synthetic { 0.0 } else { FIRST_CHUNK },
                uses_core: !synthetic,
                element: 0.0,
                oversleep: 0.0,
            },
            network,
            cores: self.cores.map_or_else(
                || std::thread::available_parallelism().map_or(1, usize::from),
                |cores| cores as usize,
            ),
            one_machine: self.one_machine,
            sample_bytes: SAMPLE,
            data_bytes: run.map_or(MNIST, |run| run.samples) * (PIXELS + 2),
            costs,
        })
    }
}

/// Samples of MNIST.
const MNIST: usize = 70_000;

/// Prints what a cluster would do.
///
/// # Errors
/// If the options cannot work together, or a file can't be read.
pub fn run(options: &PlanOptions, out: &mut impl Write) -> anyhow::Result<()> {
    let costs = match &options.costs {
        None => Costs::default(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let costs: Costs = serde_json::from_slice(&text).with_context(|| {
                format!("{} is no file of costs; `scaling calibrate` writes one", path.display())
            })?;
            ensure!(costs.is_sound(), "{} has a cost that is none", path.display());
            costs
        }
    };
    let run = options.run.as_deref().map(Measured::read).transpose()?;
    let mut rows = Vec::new();
    let mut cluster = None;
    for &workers in &options.workers.0 {
        let planned = options.cluster(run.as_ref(), costs, workers)?;
        let prediction = predict(&planned);
        let limit = advice::limit(&planned, prediction.step_seconds);
        let changes = advice::changes(&planned, prediction.step_seconds);
        rows.push(Row { prediction, limit, changes });
        cluster = Some(planned);
    }
    let Some(cluster) = cluster else { return Ok(()) };
    if options.json {
        show::json(out, &cluster, run.as_ref(), &rows)?;
    } else {
        show::text(out, &cluster, run.as_ref(), &rows, options)?;
    }
    out.flush()?;
    Ok(())
}
