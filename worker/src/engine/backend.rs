//! Which engine a worker gets: its network, its backend, and what to say when a backend
//! cannot be had.

use std::fmt;
use std::str::FromStr;

use burn_flex::{Flex, FlexDevice};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tally_exact::manifest::Manifest;

use super::burn::networks::{Mlp, Reference};
use super::burn::{BurnEngine, Memory, Network, Place, Precision};
use super::cpu::CpuEngine;
#[cfg(feature = "cuda")]
use super::cuda;
use super::synthetic::{self, SyntheticEngine};
use super::{Engine, EngineError, LabelLoss, ModelSpec};
use tally_kernels::Simd;

/// The backend that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// CUDA where it can be had, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// The way of a GPU with a CPU's arithmetic, to try what is around a GPU where there is none.
    #[value(hide = true)]
    Rehearsal,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Rehearsal => "rehearsal",
        })
    }
}

impl FromStr for BackendChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "rehearsal" => Ok(Self::Rehearsal),
            _ => Err(format!("{text:?} is no backend; there are auto, cpu and cuda")),
        }
    }
}

/// The tensors of a model, without an engine for it.
#[must_use]
pub fn manifest(model: &ModelSpec) -> Manifest {
    match model {
        ModelSpec::Reference => Reference.manifest(),
        ModelSpec::Mlp => Mlp.manifest(),
        ModelSpec::Synthetic(spec) => synthetic::manifest(spec),
    }
}

/// An engine for a model; its parameters and momentum are zeros until it is given a state.
///
/// `device` is the GPU's number, `threads` the CPU's number of threads, where 0 means as
/// many as there are; each matters to its own backend alone, and neither to the synthetic
/// model. The precision is float32's; [`build_in`] takes another.
///
/// # Errors
/// [`EngineError::Unavailable`] says what the backend asked for lacks, and
/// [`EngineError::Failed`] that it has everything and fails all the same.
pub fn build(
    model: &ModelSpec,
    loss: LabelLoss,
    backend: BackendChoice,
    device: usize,
    threads: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    build_in(Precision::F32, model, loss, backend, device, threads)
}

/// The same in another precision, which is a GPU's to have.
///
/// # Errors
/// As [`build`]; and [`EngineError::Unavailable`] if it would be a CPU.
pub fn build_in(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    backend: BackendChoice,
    device: usize,
    threads: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    let at = (backend, device, precision, threads);
    match model {
        ModelSpec::Reference => build_network(Reference, loss, at, || own_kernels(loss, threads)),
        ModelSpec::Mlp => build_network(Mlp, loss, at, || stock_kernels(Mlp, loss, threads)),
        ModelSpec::Synthetic(spec) => Ok(Box::new(SyntheticEngine::new(*spec))),
    }
}

/// A network on the GPU where that is wanted and can be had, else what `cpu` makes.
fn build_network<N: Network>(
    network: N,
    loss: LabelLoss,
    (backend, device, precision, threads): (BackendChoice, usize, Precision, usize),
    cpu: impl FnOnce() -> Result<Box<dyn Engine>, EngineError>,
) -> Result<Box<dyn Engine>, EngineError> {
    if backend == BackendChoice::Rehearsal {
        return Ok(Box::new(BurnEngine::new(network, loss, rehearsal(precision, threads)?)?));
    }
    if backend != BackendChoice::Cpu {
        match cuda::place(device, precision) {
            Ok(place) => return Ok(Box::new(BurnEngine::new(network, loss, place)?)),
            Err(error) if backend == BackendChoice::Cuda => return Err(error),
            Err(reason) if cfg!(feature = "cuda") => tracing::info!("computing on the CPU: {reason}"),
            Err(reason) => tracing::debug!("computing on the CPU: {reason}"),
        }
    }
    if precision != Precision::F32 {
        return Err(EngineError::Unavailable(format!(
            "a CPU computes in f32: leave --precision {precision} out, or choose the cuda backend"
        )));
    }
    cpu()
}

/// The reference network on the CPU, with Tally's kernels.
fn own_kernels(loss: LabelLoss, threads: usize) -> Result<Box<dyn Engine>, EngineError> {
    let simd = Simd::chosen().map_err(EngineError::Unavailable)?;
    let (pool, words) = pool(threads)?;
    Ok(Box::new(CpuEngine::new(loss, pool, simd, format!("CPU ({simd}, {words})"))))
}

/// Any network on the CPU, with Burn's.
fn stock_kernels<N: Network>(
    network: N,
    loss: LabelLoss,
    threads: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    let (pool, words) = pool(threads)?;
    let place = Place::<Flex> {
        backend: "CPU",
        words: format!("CPU (burn-flex, {words})"),
        kind: format!("burn-flex, {}", Simd::widest()),
        device: FlexDevice,
        memory: Memory::Host,
        precision: Precision::F32,
        pool: Some(pool),
    };
    Ok(Box::new(BurnEngine::new(network, loss, place)?))
}

/// A CPU as a GPU.
fn rehearsal(precision: Precision, threads: usize) -> Result<Place<Flex>, EngineError> {
    let (pool, words) = pool(threads)?;
    Ok(Place {
        backend: "CPU",
        words: format!("CPU (as a GPU, {words})"),
        kind: format!("rehearsal, {}", Simd::widest()),
        device: FlexDevice,
        memory: Memory::Device,
        precision,
        pool: Some(pool),
    })
}

/// Over how many devices the workers of one process are spread: the GPUs there are, where they may
/// be taken.
#[must_use]
pub fn devices(backend: BackendChoice) -> usize {
    match backend {
        #[cfg(feature = "cuda")]
        BackendChoice::Auto | BackendChoice::Cuda => cuda::count().unwrap_or(1).max(1),
        _ => 1,
    }
}

/// Threads of an engine's own, and how many they are in words.
fn pool(threads: usize) -> Result<(ThreadPool, String), EngineError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        _ => threads,
    };
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("compute-{index}"))
        .build()
        .map_err(|error| EngineError::Failed {
            backend: "CPU",
            what: format!("no {threads} threads: {error}"),
        })?;
    let plural = if threads == 1 { "" } else { "s" };
    Ok((pool, format!("{threads} thread{plural}")))
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{EngineError, Flex, Place, Precision};

    /// There is none. (Any backend's type does for one that never comes.)
    pub fn place(_device: usize, _precision: Precision) -> Result<Place<Flex>, EngineError> {
        Err(EngineError::Unavailable(
            "the CUDA backend is not in this binary: build it with `--features cuda`, or choose the cpu backend".into(),
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_backend_reads_as_it_prints() {
        for choice in BackendChoice::value_variants() {
            assert_eq!(choice.to_string().parse::<BackendChoice>().unwrap(), *choice);
            assert_eq!(<BackendChoice as ValueEnum>::from_str(&choice.to_string(), false).unwrap(), *choice);
        }
        assert!("gpu".parse::<BackendChoice>().unwrap_err().contains("auto, cpu and cuda"));
    }

    #[test]
    fn an_engine_has_its_models_manifest() {
        for text in ["mlp", "synthetic:parameters=9", "reference"] {
            let model = text.parse().unwrap();
            let engine = build(&model, LabelLoss::CrossEntropy, BackendChoice::Auto, 0, 1).unwrap();
            assert_eq!(engine.manifest(), &manifest(&model));
        }
    }

    #[test]
    fn a_cpu_has_one_precision() {
        let build = |precision| {
            build_in(precision, &ModelSpec::Mlp, LabelLoss::CrossEntropy, BackendChoice::Cpu, 0, 1).err()
        };
        assert!(build(Precision::F32).is_none());
        assert!(build(Precision::Bf16).unwrap().to_string().contains("--precision bf16"));
        for precision in Precision::value_variants() {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), *precision);
        }
    }

    #[test]
    fn the_device_is_named_with_its_threads() {
        let device = |threads| {
            build(&ModelSpec::Mlp, LabelLoss::CrossEntropy, BackendChoice::Cpu, 0, threads).unwrap().device()
        };
        assert_eq!(device(1), "CPU (burn-flex, 1 thread)");
        assert_eq!(device(2), "CPU (burn-flex, 2 threads)");
        assert!(device(0).starts_with("CPU (burn-flex, "));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn cuda_that_was_not_built_in_says_so() {
        let error = build(&ModelSpec::Mlp, LabelLoss::CrossEntropy, BackendChoice::Cuda, 0, 1).err().unwrap();
        assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
        assert!(
            error.to_string().contains("--features cuda") && !error.to_string().contains('\n'),
            "{error}"
        );
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn cuda_that_cannot_work_says_what_is_missing() {
        // No machine has so many devices; one without a driver says that first.
        let error =
            build(&ModelSpec::Mlp, LabelLoss::CrossEntropy, BackendChoice::Cuda, 4096, 1).err().unwrap();
        assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("libcuda") || text.contains("device"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
