//! The choice of an engine: by model, backend and precision, with an error that says why a backend cannot be used.

use tally_kernels::Simd;
use tally_numerics::manifest::Manifest;
use tally_worker::burn::{BurnBackend, DeviceContext, thread_pool};
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};
use tally_worker::engine::synthetic::{self, SyntheticEngine};
use tally_worker::engine::{Engine, EngineError};

use super::burn::networks::{Mlp, Reference};
use super::burn::{BurnEngine, Network};
use super::cpu::CpuEngine;
#[cfg(feature = "cuda-kernels")]
use super::gpu;
use super::metrics::schema;
use super::{DigitEngine, LabelLoss, MnistEngine, ModelSpec};

/// The tensors of a model, without an engine for it.
#[must_use]
pub fn manifest(model: &ModelSpec) -> Manifest {
    match model {
        ModelSpec::Reference => Reference.manifest(),
        ModelSpec::Mlp => Mlp.manifest(),
        ModelSpec::Synthetic(spec) => synthetic::manifest(spec),
    }
}

/// An engine for the cluster. Its parameters and momentum are zeros until it is given a state.
///
/// # Errors
/// As [`network`].
pub fn engine(
    model: &ModelSpec,
    loss: LabelLoss,
    device: &DeviceOptions,
) -> Result<Box<dyn Engine>, EngineError> {
    match model {
        ModelSpec::Synthetic(spec) => Ok(Box::new(SyntheticEngine::new(*spec, schema()))),
        _ => Ok(Box::new(MnistEngine::new(network(model, loss, device)?, loss))),
    }
}

/// The network of a model on a device. Its parameters and momentum are zeros until it is given a state.
///
/// # Errors
/// [`EngineError::Unavailable`] says what the backend lacks, or that it does not have the precision;
/// [`EngineError::Failed`] means that the backend lacks nothing and does not work all the same;
/// [`EngineError::Arguments`] if the model has no network.
pub fn network(
    model: &ModelSpec,
    loss: LabelLoss,
    device: &DeviceOptions,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    let &DeviceOptions { backend, device: number, precision, .. } = device;
    match backend {
        BackendChoice::Cpu => on_cpu(precision, model, loss, device.threads()),
        BackendChoice::Cuda => on_gpu(precision, model, loss, number),
        BackendChoice::CudaTally if *model == ModelSpec::Reference => {
            own_gpu_kernels(precision, loss, number)
        }
        BackendChoice::CudaTally | BackendChoice::CudaBurn => burn_on_gpu(precision, model, loss, number),
        BackendChoice::CpuAsGpu => {
            with_burn(model, loss, || DeviceContext::cpu_as_gpu(precision, device.threads()))
        }
        BackendChoice::Auto => match on_gpu(precision, model, loss, number) {
            Ok(engine) => Ok(engine),
            Err(reason) => {
                if cfg!(feature = "cuda") {
                    tracing::info!("computing on the CPU: {reason}");
                } else {
                    tracing::debug!("computing on the CPU: {reason}");
                }
                on_cpu(precision, model, loss, device.threads())
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
) -> Result<Box<dyn DigitEngine>, EngineError> {
    if precision == Precision::Bf16 {
        return Err(EngineError::Unavailable(format!(
            "a CPU computes in f32: leave --precision {precision} out, or choose the cuda backend"
        )));
    }
    match model {
        ModelSpec::Reference => own_kernels(loss, threads),
        _ => with_burn(model, loss, || DeviceContext::cpu(threads)),
    }
}

/// A model on an NVIDIA GPU: the reference network with Tally's kernels, or with Burn's if Tally's do not compute
/// correctly on that GPU.
fn on_gpu(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    match model {
        ModelSpec::Reference => match own_gpu_kernels(precision, loss, device) {
            // Burn's kernels cannot replace them in pure float32.
            Err(error @ EngineError::Failed { .. })
                if cfg!(feature = "cuda") && precision != Precision::F32 =>
            {
                let burns = burn_on_gpu(precision, model, loss, device);
                match &burns {
                    Ok(_) => tracing::warn!("computing with Burn's kernels: {error}"),
                    Err(also) => tracing::warn!("Tally's kernels and Burn's: {error}; {also}"),
                }
                burns.or(Err(error))
            }
            engine => engine,
        },
        _ => burn_on_gpu(precision, model, loss, device),
    }
}

/// A model on an NVIDIA GPU with Burn's kernels.
#[cfg(feature = "cuda")]
fn burn_on_gpu(
    precision: Precision,
    model: &ModelSpec,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    if precision == Precision::F32 {
        return Err(EngineError::Unavailable(
            "Burn's kernels may round factors to TF32, which cannot be turned off: leave --precision f32 out"
                .into(),
        ));
    }
    with_burn(model, loss, || tally_worker::burn::cuda::context(device, precision))
}

#[cfg(not(feature = "cuda"))]
fn burn_on_gpu(
    _: Precision,
    _: &ModelSpec,
    _: LabelLoss,
    _: usize,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    Err(not_built())
}

/// A model that Burn computes, on a device that `context` finds.
fn with_burn<B: BurnBackend>(
    model: &ModelSpec,
    loss: LabelLoss,
    context: impl FnOnce() -> Result<DeviceContext<B>, EngineError>,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    match model {
        ModelSpec::Reference => Ok(Box::new(BurnEngine::new(Reference, loss, context()?)?)),
        ModelSpec::Mlp => Ok(Box::new(BurnEngine::new(Mlp, loss, context()?)?)),
        ModelSpec::Synthetic(_) => {
            Err(EngineError::Arguments(format!("the model {model} has no network that could be asked")))
        }
    }
}

#[cfg(feature = "cuda-kernels")]
fn own_gpu_kernels(
    precision: Precision,
    loss: LabelLoss,
    device: usize,
) -> Result<Box<dyn DigitEngine>, EngineError> {
    Ok(Box::new(gpu::GpuEngine::checked(loss, precision, device)?))
}

#[cfg(not(feature = "cuda-kernels"))]
fn own_gpu_kernels(_: Precision, _: LabelLoss, _: usize) -> Result<Box<dyn DigitEngine>, EngineError> {
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
fn own_kernels(loss: LabelLoss, threads: usize) -> Result<Box<dyn DigitEngine>, EngineError> {
    let simd = Simd::chosen().map_err(EngineError::Unavailable)?;
    let (pool, threads) = thread_pool(threads)?;
    Ok(Box::new(CpuEngine::new(loss, pool, simd, format!("CPU ({simd}, {threads})"))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(backend: BackendChoice, threads: u32) -> DeviceOptions {
        DeviceOptions { backend, threads: Some(threads), ..DeviceOptions::default() }
    }

    fn error(device: &DeviceOptions) -> EngineError {
        network(&ModelSpec::Mlp, LabelLoss::CrossEntropy, device).err().unwrap()
    }

    #[test]
    fn an_engine_has_its_models_manifest() {
        for text in ["mlp", "synthetic:parameters=9", "reference"] {
            let model = text.parse().unwrap();
            let engine = engine(&model, LabelLoss::CrossEntropy, &options(BackendChoice::Auto, 1)).unwrap();
            assert_eq!(engine.manifest(), &manifest(&model));
        }
    }

    #[test]
    fn a_model_without_a_network_cannot_be_asked() {
        let model = "synthetic:parameters=9".parse().unwrap();
        for backend in [BackendChoice::Cpu, BackendChoice::CpuAsGpu, BackendChoice::Auto] {
            let error = network(&model, LabelLoss::CrossEntropy, &options(backend, 1)).err().unwrap();
            assert!(matches!(error, EngineError::Arguments(_)) && error.to_string().contains("synthetic"));
        }
    }

    #[test]
    fn a_cpu_has_one_precision() {
        let on = |precision| DeviceOptions { precision, ..options(BackendChoice::Cpu, 1) };
        assert!(network(&ModelSpec::Mlp, LabelLoss::CrossEntropy, &on(Precision::F32)).is_ok());
        assert!(error(&on(Precision::Bf16)).to_string().contains("--precision bf16"));
    }

    #[test]
    fn the_device_is_named_with_its_threads() {
        let device = |threads| {
            let options = DeviceOptions { threads, ..options(BackendChoice::Cpu, 1) };
            network(&ModelSpec::Mlp, LabelLoss::CrossEntropy, &options).unwrap().device_name()
        };
        assert_eq!(device(Some(1)), "CPU (burn-flex, 1 thread)");
        assert_eq!(device(Some(2)), "CPU (burn-flex, 2 threads)");
        assert!(device(None).starts_with("CPU (burn-flex, "));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn cuda_that_was_not_built_in_says_so() {
        let error = error(&options(BackendChoice::Cuda, 1));
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
        let error = error(&DeviceOptions { device: 4096, ..options(BackendChoice::Cuda, 1) });
        assert!(matches!(error, EngineError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("libcuda") || text.contains("device"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
