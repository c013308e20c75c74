//! A Burn program as the two halves of the cluster know it.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use anyhow::{Context as _, anyhow, bail, ensure};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexDevice};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tally_checkpoint::ProgramConfig;
use tally_numerics::manifest::Manifest;
use tally_run::config::{DataConfig, RunConfig};
use tally_worker::burn::DeviceContext;
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};
use tally_worker::engine::{Engine, EngineError};
use tally_worker::program::WorkerProgram;

use super::Result;
use super::engine::{GENERATOR, JobEngine};
use super::job::{Job, Split};
use super::options::{DataMode, ProgramOptions};
use crate::options::unchanged;
use crate::program::{Commands, CoordinatorProgram, Defaults, ModelCosts, NewRun, Splits};

/// The backend that makes the initial parameters, and computes on CPUs.
pub(super) type Cpu = Autodiff<Flex>;

/// A program to train with Tally: what is trained, for any backend of Burn's.
///
/// [`main`](super::main) makes a command line of it.
pub trait Program: Send + Sync + 'static {
    /// The program's name. A worker of another program is refused.
    const NAME: &'static str;

    /// The program's version. A worker of another version is refused; raise it whenever the same arguments train
    /// something else.
    const VERSION: u32 = 1;

    /// The program's own options. The coordinator parses them, and sends them to its workers.
    type Args: clap::Args + Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static;

    /// What is trained. It is called on the coordinator, for the initial parameters and the samples, and on every
    /// worker; [`job`](super::job()) makes what it returns.
    ///
    /// # Errors
    /// What is wrong with the arguments or the data, in one line.
    fn job<B: AutodiffBackend>(args: Self::Args, device: B::Device) -> Result<impl Job<B> + 'static>;
}

/// What workers are told of a run. A worker that finds another value for any part is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// [`Program::VERSION`].
    version: u32,
    /// [`Program::Args`].
    args: serde_json::Value,
    /// The run's seed.
    seed: u64,
    /// Where workers take their samples from.
    data: DataMode,
    /// The fingerprints of the training and the test samples.
    fingerprints: [String; 2],
}

/// The adapter of a [`Program`].
pub(super) struct BurnProgram<P>(PhantomData<fn(P)>);

impl<P: Program> std::fmt::Debug for BurnProgram<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BurnProgram").field(&P::NAME).finish()
    }
}

impl<P> Default for BurnProgram<P> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// The job of these arguments on a backend.
fn make<P: Program, B: AutodiffBackend>(
    args: P::Args,
    device: &B::Device,
) -> anyhow::Result<Box<dyn Job<B>>> {
    let job = P::job::<B>(args, device.clone()).map_err(|error| anyhow!(error))?;
    Ok(Box::new(job))
}

impl<P: Program> BurnProgram<P> {
    fn arguments(text: &str) -> Result<Arguments, EngineError> {
        let arguments: Arguments = serde_json::from_str(text).map_err(|error| {
            EngineError::Arguments(format!("the arguments {text} of {}: {error}", P::NAME))
        })?;
        if arguments.version != P::VERSION {
            return Err(EngineError::Arguments(format!(
                "the coordinator trains version {} of the program {}, and this worker has version {}: start the same \
                 build on both sides",
                arguments.version,
                P::NAME,
                P::VERSION
            )));
        }
        Ok(arguments)
    }

    fn args(arguments: &Arguments) -> Result<P::Args, EngineError> {
        serde_json::from_value(arguments.args.clone()).map_err(|error| {
            EngineError::Arguments(format!("the arguments {} of {}: {error}", arguments.args, P::NAME))
        })
    }

    /// What workers of a new run with this seed are told.
    pub(super) fn told(options: &ProgramOptions<P::Args>, seed: u64) -> anyhow::Result<serde_json::Value> {
        let (_, fingerprints) = Self::describe(&*Self::on_host(&options.args)?)?;
        let args =
            serde_json::to_value(&options.args).context("the program's arguments cannot be serialised")?;
        Ok(serde_json::to_value(Arguments {
            version: P::VERSION,
            args,
            seed,
            data: options.data(),
            fingerprints,
        })?)
    }

    /// The job on the coordinator's side.
    pub(super) fn on_host(args: &P::Args) -> anyhow::Result<Box<dyn Job<Cpu>>> {
        make::<P, Cpu>(args.clone(), &FlexDevice)
    }

    /// The job of a run on record, and what workers are told of it.
    fn recorded(program: &ProgramConfig) -> anyhow::Result<(Box<dyn Job<Cpu>>, Arguments)> {
        let arguments = Self::arguments(&program.arguments.to_string())?;
        Ok((Self::on_host(&Self::args(&arguments)?)?, arguments))
    }

    fn samples(job: &dyn Job<Cpu>, mode: DataMode, config: DataConfig) -> anyhow::Result<Splits> {
        let local = mode == DataMode::Local;
        let of = |split| job.samples(split, local);
        Ok(Splits { train: of(Split::Train)?, test: of(Split::Test)?, config })
    }

    /// What is known of the samples, for the run's record.
    fn describe(job: &dyn Job<Cpu>) -> anyhow::Result<(DataConfig, [String; 2])> {
        let print = |split, name| job.fingerprint(split).with_context(|| format!("the {name} samples"));
        let fingerprints = [print(Split::Train, "training")?, print(Split::Test, "test")?];
        let config = DataConfig {
            directory: None,
            train_limit: None,
            test_limit: None,
            train_samples: job.samples(Split::Train, true)?.len(),
            test_samples: job.samples(Split::Test, true)?.len(),
            sha256: fingerprints.join(" "),
        };
        Ok((config, fingerprints))
    }

    /// An engine on a context.
    fn build<B: AutodiffBackend>(
        arguments: &Arguments,
        context: DeviceContext<B::InnerBackend>,
    ) -> Result<Box<dyn Engine>, EngineError>
    where
        B::InnerBackend: tally_worker::burn::UpdateBackend + tally_worker::burn::RoundingBackend,
    {
        let args = Self::args(arguments)?;
        let local = arguments.data == DataMode::Local;
        let engine = JobEngine::<B>::new(context, arguments.seed, local, |device| {
            let job = make::<P, B>(args, device)?;
            if local {
                for (split, name, wanted) in [(Split::Train, "training", 0), (Split::Test, "test", 1)]
                    .map(|(split, name, index)| (split, name, &arguments.fingerprints[index]))
                {
                    let own = job.fingerprint(split).with_context(|| format!("the {name} samples"))?;
                    ensure!(
                        own == *wanted,
                        "this machine's {name} samples are not the coordinator's (--data local): their fingerprint is \
                         {own}, and the coordinator's {wanted}; copy the same data to every machine"
                    );
                }
            }
            Ok(job)
        })?;
        Ok(Box::new(engine))
    }
}

impl<P: Program> WorkerProgram for BurnProgram<P> {
    fn name(&self) -> &str {
        P::NAME
    }

    fn engine(&self, arguments: &str, device: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError> {
        let arguments = Self::arguments(arguments)?;
        let _generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        let on_cpu = || {
            if device.precision == Precision::Bf16 {
                return Err(EngineError::Unavailable(
                    "a Burn program computes in float32: leave --precision bf16 out".into(),
                ));
            }
            Self::build::<Cpu>(&arguments, DeviceContext::cpu(device.threads())?)
        };
        match device.backend {
            BackendChoice::Cpu => on_cpu(),
            BackendChoice::CpuAsGpu => {
                Self::build::<Cpu>(&arguments, DeviceContext::cpu_as_gpu(device.precision, device.threads())?)
            }
            BackendChoice::Cuda | BackendChoice::CudaBurn => Self::on_gpu(&arguments, device),
            BackendChoice::CudaTally => Err(EngineError::Unavailable(format!(
                "Tally has no CUDA kernels of its own for the program {}: choose --backend cuda",
                P::NAME
            ))),
            BackendChoice::Auto => match Self::on_gpu(&arguments, device) {
                Err(EngineError::Unavailable(reason)) => {
                    tracing::info!("computing on the CPU: {reason}");
                    on_cpu()
                }
                engine => engine,
            },
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_devices(&self) -> Result<usize, EngineError> {
        tally_worker::cuda_probe::count()
    }
}

impl<P: Program> BurnProgram<P> {
    #[cfg(feature = "cuda")]
    fn on_gpu(arguments: &Arguments, device: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError> {
        if device.precision != Precision::default() {
            return Err(EngineError::Unavailable(format!(
                "a Burn program computes in {} on a GPU: leave --precision {} out",
                Precision::default(),
                device.precision
            )));
        }
        let context = tally_worker::burn::cuda::context(device.device, device.precision)?;
        Self::build::<Autodiff<tally_worker::burn::cuda::Gpu>>(arguments, context)
    }

    #[cfg(not(feature = "cuda"))]
    fn on_gpu(_: &Arguments, _: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError> {
        Err(EngineError::Unavailable(
            "the CUDA backend is not in this binary: build it with tally's feature `cuda`, or choose --backend cpu"
                .into(),
        ))
    }
}

impl<P: Program> CoordinatorProgram for BurnProgram<P> {
    type Options = ProgramOptions<P::Args>;

    fn commands(&self) -> Commands {
        Commands {
            coordinator: format!("{} coordinator", P::NAME),
            common: P::NAME.into(),
            worker: format!("{} worker", P::NAME),
        }
    }

    fn defaults(&self, options: Option<&Self::Options>) -> anyhow::Result<Defaults> {
        let args = match options {
            Some(options) => options.args.clone(),
            None => ProgramOptions::<P::Args>::default_values()?.args,
        };
        Ok(Self::on_host(&args)?.defaults())
    }

    fn data(&self, options: &Self::Options, _seed: u64) -> anyhow::Result<Splits> {
        let job = Self::on_host(&options.args)?;
        let (config, _) = Self::describe(&*job)?;
        Self::samples(&*job, options.data(), config)
    }

    fn recorded_data(&self, config: &RunConfig, data_dir: Option<&Path>) -> anyhow::Result<Splits> {
        ensure!(
            data_dir.is_none(),
            "--data-dir is not for the program {}: its data is where its own options say",
            P::NAME
        );
        let (job, arguments) = Self::recorded(&config.program)?;
        let (found, _) = Self::describe(&*job)?;
        ensure!(
            found == config.data,
            "the samples are not those that the run was trained on: there were {} to train with and {} to test with, \
             and their fingerprints were {}; there are {} and {} now, with {}",
            config.data.train_samples,
            config.data.test_samples,
            config.data.sha256,
            found.train_samples,
            found.test_samples,
            found.sha256
        );
        Self::samples(&*job, arguments.data, found)
    }

    fn new_run(&self, options: &Self::Options, steps: u64, seed: u64) -> anyhow::Result<NewRun> {
        let job = Self::on_host(&options.args)?;
        for (split, name) in [(Split::Train, "training"), (Split::Test, "test")] {
            let last = job.samples(split, true)?.len().saturating_sub(1) as u32;
            for id in [0, last] {
                job.check_item(split, id)
                    .with_context(|| format!("the {name} samples do not survive the way to a worker"))?;
            }
        }
        let layout = job.layout().map_err(anyhow::Error::msg)?;
        Ok(NewRun {
            program: ProgramConfig {
                name: P::NAME.into(),
                variant: P::NAME.into(),
                arguments: Self::told(options, seed)?,
            },
            schema: job.schema()?,
            tensors: layout.manifest().clone(),
            optimizer: job.optimizer(steps).map_err(anyhow::Error::msg)?,
            recipe: "default".into(),
        })
    }

    fn learning_rates(&self, config: &RunConfig, steps: u64) -> anyhow::Result<Option<Arc<[f32]>>> {
        let (job, _) = Self::recorded(&config.program)?;
        Ok(job.optimizer(steps).map_err(anyhow::Error::msg)?.rates)
    }

    fn initial_parameters(&self, config: &RunConfig) -> anyhow::Result<Vec<f32>> {
        let _generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        Cpu::seed(&FlexDevice, config.seed);
        let (job, _) = Self::recorded(&config.program)?;
        let layout = job.layout().map_err(anyhow::Error::msg)?;
        job.values(&layout).map_err(anyhow::Error::msg)
    }

    fn resume(&self, options: &Self::Options, config: &mut RunConfig) -> anyhow::Result<()> {
        let run = Self::arguments(&config.program.arguments.to_string())?;
        unchanged("--data", options.given_data().as_ref(), &run.data, DataMode::to_string)?;
        let given = serde_json::to_value(&options.args)?;
        for name in options.given() {
            let (now, then) = (given.get(name), run.args.get(name));
            if now != then {
                let shown = |value: Option<&serde_json::Value>| {
                    value.map_or("nothing".to_owned(), serde_json::Value::to_string)
                };
                bail!(
                    "--{} {} cannot change on --resume: the run has {}; leave it out, or start a new run",
                    name.replace('_', "-"),
                    shown(now),
                    shown(then)
                );
            }
        }
        Ok(())
    }

    fn manifest(&self, program: &ProgramConfig) -> anyhow::Result<Manifest> {
        let (job, _) = Self::recorded(program)?;
        Ok(job.layout().map_err(anyhow::Error::msg)?.manifest().clone())
    }

    fn model_costs(&self, variant: Option<&str>) -> anyhow::Result<ModelCosts> {
        if let Some(other) = variant.filter(|variant| *variant != P::NAME) {
            bail!("the program {} has no model {other:?}; leave --model out", P::NAME);
        }
        let options = ProgramOptions::<P::Args>::default_values()?;
        let job = Self::on_host(&options.args)?;
        let samples = job.samples(Split::Train, false)?;
        let sample_bytes = match options.data() {
            DataMode::Local => 0.0,
            DataMode::Shipped => samples.item(0)?.len() as f64,
        };
        Ok(ModelCosts {
            parameters: job.layout().map_err(anyhow::Error::msg)?.manifest().len(),
            fused: false,
            uses_core: true,
            // Burn's backward pass returns all gradients at once.
            first_chunk: 1.0,
            sample_bytes: sample_bytes + 3.0,
            samples: samples.len() + job.samples(Split::Test, false)?.len(),
        })
    }
}
