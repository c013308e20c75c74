//! Burn on an NVIDIA GPU: the device context, or what is missing for one.

use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Once;

use burn::tensor::{Tensor, TensorData};
use burn_cuda::{Cuda, CudaDevice};
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};

use super::{DeviceContext, Memory, update};
use crate::cuda_probe;
use crate::device::Precision;
use crate::engine::EngineError;
use crate::panic_message::panic_message;

/// The backend, with its fusion of operations.
pub type Gpu = Cuda<f32, i32>;

/// GPU number `device`, to compute in `precision`, after a first small computation on it.
///
/// # Errors
/// [`EngineError::Unavailable`] says what is missing; [`EngineError::Failed`] means that nothing is missing and the
/// GPU does not work all the same.
pub fn context(device: usize, precision: Precision) -> Result<DeviceContext<Gpu>, EngineError> {
    let name = cuda_probe::name(device)?;
    cuda_probe::ask(headers)?;
    remember(&name);
    let context = DeviceContext {
        backend: "CUDA",
        name: format!("{name} (CUDA device {device}, Burn's kernels)"),
        numerics_class: name,
        device: CudaDevice::new(device),
        memory: Memory::Device,
        precision,
        pool: None,
    };
    context.run(try_out)?;
    context.run(update::check::<Gpu>)?;
    Ok(context)
}

/// Makes cubecl keep its measurements and compiled kernels from run to run, separately for each model of GPU.
///
/// cubecl measures several kernels for every kind and size of operation, and uses the fastest. So two processes may
/// choose different kernels, which changes a gradient's bits (**SUM-1**); with one cache they choose the same ones.
/// A `cubecl.toml` of the user takes precedence where it says more.
fn remember(model: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let set = catch_unwind(|| {
            let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
            if let Some(cache) = cache(model) {
                if matches!(config.autotune.cache, CacheConfig::Target) {
                    config.autotune.cache = CacheConfig::File(cache.clone());
                }
                config.compilation.cache.get_or_insert(CacheConfig::File(cache));
            }
            CubeClRuntimeConfig::set(config);
        });
        if let Err(panic) = set {
            tracing::warn!("the GPU's kernels are chosen anew: {}", panic_message(&*panic));
        }
    });
}

/// The cache directory for a model of GPU: in `TALLY_CACHE_DIR`, or in the user's cache directory. None if neither is
/// set, because compiled kernels must not lie where other users may write.
fn cache(model: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let all = set("TALLY_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tally")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/tally")))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    Some(all.join(model.chars().map(plain).collect::<String>()))
}

/// Compiles and runs a kernel.
fn try_out(device: &CudaDevice) -> Result<(), String> {
    let data = TensorData::new(vec![1.0f32, 2.0], [2]);
    let doubled = (Tensor::<Gpu, 1>::from_data(data, device) * 2.0).try_into_data();
    let values =
        doubled.map_err(|error| error.to_string())?.to_vec::<f32>().map_err(|error| format!("{error:?}"))?;
    if values == [2.0, 4.0] { Ok(()) } else { Err(format!("it computed 2 × [1, 2] as {values:?}")) }
}

/// Looks for the CUDA headers where cubecl-cuda does; it compiles every kernel with them.
fn headers() -> Result<(), String> {
    let there = |path: &str| PathBuf::from(path).exists();
    let root = match std::env::var("CUDA_PATH") {
        Ok(path) => path,
        Err(_) if there("/usr/local/cuda") => "/usr/local/cuda".into(),
        Err(_) if there("/opt/cuda") => "/opt/cuda".into(),
        Err(_) if there("/usr/bin/nvcc") => "/usr".into(),
        Err(_) => {
            return Err(
                "the CUDA headers are missing: neither CUDA_PATH is set nor is there a /usr/local/cuda; \
                        they come with the CUDA toolkit, as package cuda-cudart-dev"
                    .into(),
            );
        }
    };
    let header = PathBuf::from(root).join("include/cuda_runtime.h");
    if header.exists() {
        return Ok(());
    }
    Err(format!(
        "the CUDA headers are missing: there is no {}; set CUDA_PATH to the folder whose include/ has them",
        header.display()
    ))
}
