//! NVIDIA GPUs of this machine: whether one can be used, what is missing if not, and the one context of each.
//!
//! cudarc loads the driver and the run-time compiler when they are first used, and panics if one is missing. So
//! each of them is looked for first, and each has its own error message.
//!
//! A device has one context, which stays until the process ends. A new one would take a good part of a second, and the end of
//! one frees everything that was made in it.

use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError};

use crate::engine::EngineError;
use crate::panic_message::panic_message;

/// The model of GPU number `device`, if everything is there that computing on it needs.
///
/// # Errors
/// [`EngineError::Unavailable`] says what is missing.
pub fn name(device: usize) -> Result<String, EngineError> {
    ask(|| look_for_everything(device))
}

/// How many GPUs there are.
///
/// # Errors
/// [`EngineError::Unavailable`], if that can't be found out.
pub fn count() -> Result<usize, EngineError> {
    ask(|| known().map(|count| usize::try_from(count).unwrap_or(0)))
}

/// The context of GPU number `device`. cudarc's events between streams are turned off in it, so its user keeps the
/// order in which streams use memory.
///
/// # Errors
/// As the driver says.
#[allow(unsafe_code)] // cudarc marks this so because its own slices rely on the events.
pub fn context(device: usize) -> Result<Arc<CudaContext>, DriverError> {
    static ALL: Mutex<Vec<(usize, Arc<CudaContext>)>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, context)) = all.iter().find(|(own, _)| *own == device) {
        context.bind_to_thread()?;
        return Ok(Arc::clone(context));
    }
    let context = CudaContext::new(device)?;
    // SAFETY: nothing was allocated in this context yet, and its user's events keep the order.
    unsafe { context.disable_event_tracking() };
    all.push((device, Arc::clone(&context)));
    Ok(context)
}

/// Asks the driver; a panic becomes an error too.
///
/// # Errors
/// [`EngineError::Unavailable`] says what is missing.
pub fn ask<T>(
    question: impl FnOnce() -> Result<T, String> + std::panic::UnwindSafe,
) -> Result<T, EngineError> {
    let answer = catch_unwind(question);
    answer
        .unwrap_or_else(|panic| Err(format!("the driver panicked: {}", panic_message(&*panic))))
        .map_err(|missing| EngineError::Unavailable(format!("the CUDA backend cannot work here: {missing}")))
}

fn known() -> Result<i32, String> {
    if !libraries::driver() {
        return Err("there is no NVIDIA driver (libcuda was not found)".into());
    }
    CudaContext::device_count().map_err(|error| format!("the NVIDIA driver finds no device: {error}"))
}

/// The device's name, or what is missing.
fn look_for_everything(device: usize) -> Result<String, String> {
    let count = known()?;
    if i32::try_from(device).map_or(true, |device| device >= count) {
        return Err(format!("there is no device {device}: the NVIDIA driver knows {count}, numbered from 0"));
    }
    if !libraries::nvrtc() {
        return Err("the run-time compiler is missing (libnvrtc was not found); \
                    it comes with the CUDA toolkit, as package cuda-nvrtc"
            .into());
    }
    let name = context(device).and_then(|context| context.name());
    name.map_err(|error| format!("device {device} does not answer: {error}"))
}

/// Whether the libraries that are loaded at run time can be.
#[allow(unsafe_code)] // cudarc marks these two so because loading a library runs its initialisers.
mod libraries {
    pub fn driver() -> bool {
        // SAFETY: it only loads libcuda, NVIDIA's own, which the engine would load next.
        unsafe { cudarc::driver::sys::is_culib_present() }
    }
    pub fn nvrtc() -> bool {
        // SAFETY: it only loads libnvrtc, NVIDIA's own, which the engine would load next.
        unsafe { cudarc::nvrtc::sys::is_culib_present() }
    }
}
