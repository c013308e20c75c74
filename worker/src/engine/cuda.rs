//! An NVIDIA GPU as a place to compute: whether it can be had, and what is missing if not.
//!
//! The backend loads the driver and the run-time compiler when it is first used, and
//! panics when one is missing. So everything it needs is asked for first, and each thing
//! missing has its own words.

use std::panic::catch_unwind;
use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use burn_cuda::{Cuda, CudaDevice};
use cudarc::driver::CudaContext;

use super::EngineError;
use super::burn::{Memory, Place, Precision, words_of};

type Gpu = Cuda<f32, i32>;

/// GPU number `device`, after a first small computation on it.
pub fn place(device: usize) -> Result<Place<Gpu>, EngineError> {
    let name = catch_unwind(|| look_for_everything(device))
        .unwrap_or_else(|panic| Err(format!("the driver panicked: {}", words_of(&*panic))))
        .map_err(|missing| {
            EngineError::Unavailable(format!("the CUDA backend cannot work here: {missing}"))
        })?;
    let place = Place {
        backend: "CUDA",
        words: format!("{name} (CUDA device {device})"),
        device: CudaDevice::new(device),
        memory: Memory::Device,
        precision: Precision::F32,
        pool: None,
    };
    place.run(try_out)?;
    Ok(place)
}

/// Compiles and runs a kernel.
fn try_out(device: &CudaDevice) -> Result<(), String> {
    let data = TensorData::new(vec![1.0f32, 2.0], [2]);
    let doubled = (Tensor::<Gpu, 1>::from_data(data, device) * 2.0).try_into_data();
    let values =
        doubled.map_err(|error| error.to_string())?.to_vec::<f32>().map_err(|error| format!("{error:?}"))?;
    if values == [2.0, 4.0] { Ok(()) } else { Err(format!("it made {values:?} of twice [1, 2]")) }
}

/// The device's name, or what is missing.
fn look_for_everything(device: usize) -> Result<String, String> {
    if !libraries::driver() {
        return Err("there is no NVIDIA driver (libcuda was not found)".into());
    }
    let count =
        CudaContext::device_count().map_err(|error| format!("the NVIDIA driver finds no device: {error}"))?;
    if i32::try_from(device).map_or(true, |device| device >= count) {
        return Err(format!("there is no device {device}: the NVIDIA driver knows {count}, numbered from 0"));
    }
    if !libraries::nvrtc() {
        return Err("the run-time compiler is missing (libnvrtc was not found); \
                    it comes with the CUDA toolkit, as package cuda-nvrtc"
            .into());
    }
    headers()?;
    let name = CudaContext::new(device).and_then(|context| context.name());
    name.map_err(|error| format!("device {device} does not answer: {error}"))
}

/// Looks for the headers where cubecl-cuda does, which compiles every kernel with them.
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

/// Whether the libraries that are loaded at run time can be.
#[allow(unsafe_code)] // cudarc marks these two so because loading a library runs its initialisers.
mod libraries {
    pub fn driver() -> bool {
        // SAFETY: it only loads libcuda, NVIDIA's own, which the backend would load next.
        unsafe { cudarc::driver::sys::is_culib_present() }
    }
    pub fn nvrtc() -> bool {
        // SAFETY: it only loads libnvrtc, NVIDIA's own, which the backend would load next.
        unsafe { cudarc::nvrtc::sys::is_culib_present() }
    }
}
