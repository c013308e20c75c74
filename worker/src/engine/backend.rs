//! Which engine a worker gets: its network, its backend, and what to say when a backend
//! cannot be had.

use std::fmt;
use std::str::FromStr;

use burn_flex::{Flex, FlexDevice};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tally_numerics::manifest::Manifest;

use super::burn::networks::{Mlp, Reference};
use super::burn::{BurnBackend, BurnEngine, Memory, Network, Place, Precision};
use super::cpu::CpuEngine;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda-kernels")]
use super::gpu;
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
    /// An NVIDIA GPU with Tally's kernels or not at all, to check them.
    #[value(hide = true)]
    CudaTally,
    /// An NVIDIA GPU with Burn's kernels even where Tally has its own, to compare them.
    #[value(hide = true)]
    CudaBurn,
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
            Self::CudaTally => "cuda-tally",
            Self::CudaBurn => "cuda-burn",
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
            "cuda-tally" => Ok(Self::CudaTally),
            "cuda-burn" => Ok(Self::CudaBurn),
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
/// model. The precision is the default one; [`build_in`] takes another.
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
    build_in(Precision::default(), model, loss, backend, device, threads)
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
    match backend {
        BackendChoice::Cpu => on_cpu(precision, model, loss, threads),
        BackendChoice::Cuda => on_gpu(precision, model, loss, device),
        BackendChoice::CudaTally if *model == ModelSpec::Reference => {
            own_gpu_kernels(precision, loss, device)
        }
        BackendChoice::CudaTally | BackendChoice::CudaBurn => {
            with_burn_on_gpu(precision, model, loss, device)
        }
        BackendChoice::Rehearsal => with_burn(model, loss, || rehearsal(precision, threads)),
        BackendChoice::Auto => match on_gpu(precision, model, loss, device) {
            Ok(engine) => Ok(engine),
            Err(reason) => {
                if cfg!(feature = "cuda") {
                    tracing::info!("computing on the CPU: {reason}");
                } else {
                    tracing::debug!("computing on the CPU: {reason}");
                }
                on_cpu(precision, model, loss, threads)
            }
        },
    }
}

/// A model on a CPU.
fn on_cpu(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    threads: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    if precision == Precision::Bf16 && !matches!(model, ModelSpec::Synthetic(_)) {
        return Err(EngineError::Unavailable(format!(
            "a CPU computes in f32: leave --precision {precision} out, or choose the cuda backend"
        )));
    }
    match model {
        ModelSpec::Reference => own_kernels(loss, threads),
        ModelSpec::Mlp => with_burn(model, loss, || stock(threads)),
        ModelSpec::Synthetic(spec) => Ok(Box::new(SyntheticEngine::new(*spec))),
    }
}

/// A model on an NVIDIA GPU: the reference network with Tally's kernels, unless they do not compute what they must there.
fn on_gpu(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    match model {
        ModelSpec::Reference => match own_gpu_kernels(precision, loss, device) {
            // In float32 alone there is nothing of Burn's in their place.
            Err(error @ EngineError::Failed { .. })
                if cfg!(feature = "cuda") && precision != Precision::F32 =>
            {
                let burns = with_burn_on_gpu(precision, model, loss, device);
                match &burns {
                    Ok(_) => tracing::warn!("computing with Burn's kernels: {error}"),
                    Err(also) => tracing::warn!("Tally's kernels and Burn's: {error}; {also}"),
                }
                burns.or(Err(error))
            }
            engine => engine,
        },
        _ => with_burn_on_gpu(precision, model, loss, device),
    }
}

/// A model on an NVIDIA GPU with Burn's kernels.
fn with_burn_on_gpu(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    let there = cfg!(feature = "cuda");
    if there && precision == Precision::F32 && !matches!(model, ModelSpec::Synthetic(_)) {
        return Err(EngineError::Unavailable(
            "Burn's kernels round factors to TF32 where they like, and can't be kept from it: leave --precision f32 out".into(),
        ));
    }
    with_burn(model, loss, || cuda::place(device, precision))
}

/// A model that Burn computes, at a place that is looked for if it is one.
fn with_burn<B: BurnBackend>(
    model: &ModelSpec,
    loss: LabelLoss,
    place: impl FnOnce() -> Result<Place<B>, EngineError>,
) -> Result<Box<dyn Engine>, EngineError> {
    match model {
        ModelSpec::Reference => Ok(Box::new(BurnEngine::new(Reference, loss, place()?)?)),
        ModelSpec::Mlp => Ok(Box::new(BurnEngine::new(Mlp, loss, place()?)?)),
        ModelSpec::Synthetic(spec) => Ok(Box::new(SyntheticEngine::new(*spec))),
    }
}

#[cfg(feature = "cuda-kernels")]
fn own_gpu_kernels(
    precision: Precision,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(gpu::GpuEngine::checked(loss, precision, device)?))
}

#[cfg(not(feature = "cuda-kernels"))]
fn own_gpu_kernels(_: Precision, _: LabelLoss, _: usize) -> Result<Box<dyn Engine>, EngineError> {
    Err(not_built())
}

#[cfg(not(feature = "cuda"))]
fn not_built() -> EngineError {
    EngineError::Unavailable(
        "the CUDA backend is not in this binary: build it with `--features cuda`, or choose the cpu backend"
            .into(),
    )
}

/// The reference network on the CPU, with Tally's kernels.
fn own_kernels(loss: LabelLoss, threads: usize) -> Result<Box<dyn Engine>, EngineError> {
    let simd = Simd::chosen().map_err(EngineError::Unavailable)?;
    let (pool, words) = pool(threads)?;
    Ok(Box::new(CpuEngine::new(loss, pool, simd, format!("CPU ({simd}, {words})"))))
}

/// A CPU for Burn.
fn stock(threads: usize) -> Result<Place<Flex>, EngineError> {
    let (pool, words) = pool(threads)?;
    Ok(Place {
        backend: "CPU",
        words: format!("CPU (burn-flex, {words})"),
        kind: format!("burn-flex, {}", Simd::widest()),
        device: FlexDevice,
        memory: Memory::Host,
        precision: Precision::F32,
        pool: Some(pool),
    })
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
        #[cfg(feature = "cuda-kernels")]
        BackendChoice::Auto | BackendChoice::Cuda | BackendChoice::CudaTally | BackendChoice::CudaBurn => {
            gpu::look::count().unwrap_or(1).max(1)
        }
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
        Err(super::not_built())
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
