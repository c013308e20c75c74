//! `coordinator plan`: what a cluster would do, and what would limit it.

mod measured;
mod show;
pub mod units;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use tally_capacity::advice::{self, Change, Limit};
use tally_capacity::{Cluster, Computing, Costs, Network, Prediction, predict};
use tally_core::optimizer::{Algorithm, OptimizerConfig};
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;

use self::measured::Measured;
use self::units::{Bits, Count, Seconds, Workers};
use crate::options::check_microbatch;
use crate::program::{CoordinatorProgram, ModelCosts};

/// Options of `coordinator plan`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("time").required(true).args(["sample_time", "step_time", "run"]))]
pub struct PlanOptions {
    /// Numbers of workers, all alike: one, several, or a range, which is its ends and the powers of two between
    /// them
    #[arg(long, value_name = "N,N..N", default_value = "1..64")]
    pub workers: Workers,

    /// The time in which a worker computes one sample, with s, ms or us, such as 4.8ms
    #[arg(long, value_name = "TIME", help_heading = "Computing")]
    pub sample_time: Option<Seconds>,

    /// The time in which one worker computes a whole step's batch, with s, ms or us
    #[arg(long, value_name = "TIME", help_heading = "Computing")]
    pub step_time: Option<Seconds>,

    /// Take times, model, batch, microbatches and the rest from this run, unless they are given
    #[arg(long, value_name = "RUN_DIR", help_heading = "Computing")]
    pub run: Option<PathBuf>,

    /// The network, for its size [default: the run's, else the program's]
    #[arg(long, value_name = "MODEL", conflicts_with = "parameters", help_heading = "Computing")]
    pub model: Option<String>,

    /// The network's number of parameters, in place of --model, such as 25M
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub parameters: Option<Count>,

    /// Samples of a step, over all workers [default: the run's, else the program's]
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub batch_size: Option<usize>,

    /// Microbatches that a step is cut into [default: the run's, else the program's]
    #[arg(long, value_name = "N", help_heading = "Computing")]
    pub microbatches: Option<u32>,

    /// The number format in which gradients travel: f32 or bf16 [default: the run's, or f32]
    #[arg(long, value_name = "DTYPE", help_heading = "Computing")]
    pub wire_dtype: Option<WireDtype>,

    /// The optimizer, for the memory of what it keeps: sgd, adam, adamw, rmsprop or lion [default: the run's, or sgd]
    #[arg(long, value_name = "NAME", help_heading = "Computing")]
    pub optimizer: Option<Algorithm>,

    /// The gradient is not clipped (--clip-norm none), so that the update need not wait for all of it
    #[arg(long, help_heading = "Computing")]
    pub unclipped: bool,

    /// Bits a second of the coordinator's network connection, the same both ways, with k, M, G or T
    #[arg(long, value_name = "RATE", default_value = "10G", help_heading = "Network")]
    pub bandwidth: Bits,

    /// Bits a second of each worker's network connection, or, with --per-machine, of each machine's [default: as
    /// --bandwidth]
    #[arg(long, value_name = "RATE", help_heading = "Network")]
    pub worker_bandwidth: Option<Bits>,

    /// The round-trip time between a worker and the coordinator, as ping shows it
    #[arg(long, value_name = "TIME", default_value = "0.2ms", help_heading = "Network")]
    pub round_trip: Seconds,

    /// Cores of the coordinator's machine [default: those of this one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Machines")]
    pub cores: Option<u32>,

    /// Workers on each machine, which share its network connection, and combine their gradients in sharded steps
    #[arg(
        long, value_name = "N", default_value_t = 1, conflicts_with = "one_machine", help_heading = "Machines",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub per_machine: u32,

    /// The workers run on the coordinator's machine too, with a thread each and --no-shared-memory
    #[arg(long, help_heading = "Machines")]
    pub one_machine: bool,

    /// What messages, bytes and additions cost a processor, as `scaling calibrate` writes it [default:
    /// as measured for docs/scaling.md]
    #[arg(long, value_name = "FILE", help_heading = "Machines")]
    pub costs: Option<PathBuf>,

    /// Print the plan as one JSON object
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
    fn cluster<P: CoordinatorProgram>(
        &self,
        program: &P,
        run: Option<&Measured>,
        costs: Costs,
        workers: usize,
    ) -> anyhow::Result<Cluster> {
        let defaults = program.defaults(None)?;
        let batch_size = self.batch_size.or(run.map(|run| run.batch_size)).unwrap_or(defaults.batch_size);
        ensure!(
            (1..=1 << 24).contains(&batch_size),
            "--batch-size is from 1 to {}, not {batch_size}",
            1 << 24
        );
        let microbatches =
            self.microbatches.or(run.map(|run| run.microbatches)).unwrap_or(defaults.microbatches);
        let tree = Tree::new(microbatches).context("--microbatches")?;
        check_microbatch(batch_size, microbatches)?;
        let variant = run.filter(|_| self.parameters.is_none()).map(|run| run.variant.as_str());
        let known = program.model_costs(self.model.as_deref().or(variant)).context("--model")?;
        // Of a model that is only a number, nothing more is known.
        let model = match self.parameters {
            None => known,
            Some(count) => ModelCosts { parameters: count.0, fused: false, uses_core: true, ..known },
        };
        let sample = match (self.sample_time, self.step_time, run) {
            (Some(Seconds(sample)), _, _) => sample,
            (_, Some(Seconds(step)), _) => step / batch_size as f64,
            (_, _, Some(run)) => run.sample_seconds,
            _ => anyhow::bail!("say how long a worker computes, with --sample-time, --step-time or --run"),
        };
        let wire_dtype = self.wire_dtype.or(run.map(|run| run.wire_dtype)).unwrap_or_default();
        let Bits(bandwidth) = self.bandwidth;
        let worker = self.worker_bandwidth.map_or(bandwidth, |bits| bits.0);
        let network = match self.one_machine {
            true => Network::unlimited(),
            false => {
                let mates = (self.per_machine as usize).min(workers) as f64;
                Network::of_bits(bandwidth, worker / mates, self.round_trip.0)
            }
        };
        Ok(Cluster {
            workers,
            parameters: model.parameters,
            wire_dtype,
            batch_size,
            tree,
            moments: match self.optimizer {
                Some(algorithm) => OptimizerConfig::new(algorithm).moments().len(),
                None => run.map_or(1, |run| run.moments),
            },
            clipped: !self.unclipped && run.is_none_or(|run| run.clipped),
            computing: Computing {
                sample,
                subtree: 0.0,
                at_once: model.fused,
                first_chunk: model.first_chunk,
                uses_core: model.uses_core,
                element: 0.0,
                oversleep: 0.0,
            },
            network,
            cores: self.cores.map_or_else(
                || std::thread::available_parallelism().map_or(1, usize::from),
                |cores| cores as usize,
            ),
            one_machine: self.one_machine,
            per_machine: self.per_machine as usize,
            sample_bytes: model.sample_bytes,
            data_bytes: (run.map_or(model.samples, |run| run.samples) as f64 * model.sample_bytes) as usize,
            costs,
        })
    }
}

/// Prints what a cluster would do.
///
/// # Errors
/// If the options cannot work together, or a file can't be read.
pub fn run<P: CoordinatorProgram>(
    program: &P,
    options: &PlanOptions,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let costs = match &options.costs {
        None => Costs::default(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let costs: Costs = serde_json::from_slice(&text).with_context(|| {
                format!("{} is no file of costs; `scaling calibrate` writes one", path.display())
            })?;
            ensure!(
                costs.is_sound(),
                "{} has a cost that is negative, too large, or no number; write the file anew with `scaling calibrate`",
                path.display()
            );
            costs
        }
    };
    let run = options.run.as_deref().map(Measured::read).transpose()?;
    let mut rows = Vec::new();
    let mut cluster = None;
    for &workers in &options.workers.0 {
        let planned = options.cluster(program, run.as_ref(), costs, workers)?;
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
