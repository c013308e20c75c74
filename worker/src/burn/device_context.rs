//! Where and how an engine computes: the device, the precision, the threads.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tally_kernels::Simd;

use crate::device::Precision;
use crate::engine::EngineError;
use crate::panic_message::panic_message;

/// Where a backend's tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In the host's memory: reading one is free.
    Host,
    /// Across a bus: every read waits for the device, and every byte takes its time.
    Device,
}

/// Where and how an engine computes.
pub struct DeviceContext<B: Backend> {
    /// The backend's name, for errors: `"CPU"`.
    pub backend: &'static str,
    /// The device's name, for logs: `"CPU (burn-flex, 2 threads)"`.
    pub name: String,
    /// What decides the bits of a gradient, such as the model of a GPU (**SUM-1**).
    pub numerics_class: String,
    /// The device.
    pub device: B::Device,
    /// Where its tensors lie.
    pub memory: Memory,
    /// The precision of the forward and backward pass.
    pub precision: Precision,
    /// The threads on which it computes; the caller's own without a pool.
    pub pool: Option<ThreadPool>,
}

impl<B: Backend> DeviceContext<B> {
    /// Runs `work` on the context's threads. A panic in `work`, which is how Burn reports a device's failure, becomes
    /// an error.
    ///
    /// # Errors
    /// [`EngineError::Failed`] with the message of `work` or of the panic.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce(&B::Device) -> Result<T, String> + Send,
    ) -> Result<T, EngineError> {
        let device = &self.device;
        let result = catch_unwind(AssertUnwindSafe(|| match &self.pool {
            Some(pool) => pool.install(|| work(device)),
            None => work(device),
        }));
        let result = result.unwrap_or_else(|panic| {
            let place = tally_cli::logging::take_panic_location();
            let place = place.map_or_else(String::new, |place| format!("panicked at {place}: "));
            Err(format!("{place}{}", panic_message(&*panic)))
        });
        result.map_err(|what| self.failed(what))
    }

    /// An error of this backend.
    #[must_use]
    pub fn failed(&self, what: String) -> EngineError {
        EngineError::Failed { backend: self.backend, what }
    }
}

impl DeviceContext<Flex> {
    /// The CPU with `threads` threads, 0 for one per core.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the threads cannot be started.
    pub fn cpu(threads: usize) -> Result<Self, EngineError> {
        let (pool, threads) = thread_pool(threads)?;
        Ok(Self {
            backend: "CPU",
            name: format!("CPU (burn-flex, {threads})"),
            numerics_class: format!("burn-flex, {}, {}", Simd::widest(), caches()),
            device: FlexDevice,
            memory: Memory::Host,
            precision: Precision::F32,
            pool: Some(pool),
        })
    }

    /// The CPU used as if it were a GPU, so that the code path of GPUs can be tested where there is none.
    ///
    /// # Errors
    /// [`EngineError::Failed`] if the threads cannot be started.
    pub fn cpu_as_gpu(precision: Precision, threads: usize) -> Result<Self, EngineError> {
        let (pool, threads) = thread_pool(threads)?;
        Ok(Self {
            backend: "CPU",
            name: format!("CPU (as a GPU, {threads})"),
            numerics_class: format!("cpu-as-gpu, {}, {}", Simd::widest(), caches()),
            device: FlexDevice,
            memory: Memory::Device,
            precision,
            pool: Some(pool),
        })
    }
}

/// The sizes of the processor's data caches, by which burn-flex's matrix product picks its blocks: `caches 32K 512K
/// 32768K`.
fn caches() -> String {
    let read = |index: usize, what: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let data = (0..8).filter(|&index| matches!(read(index, "type").as_str(), "Data" | "Unified"));
    data.fold("caches".to_owned(), |text, index| format!("{text} {}", read(index, "size")))
}

/// A thread pool for an engine, and its size as text: `2 threads`. 0 means one thread per core.
///
/// # Errors
/// [`EngineError::Failed`] if the threads cannot be started.
pub fn thread_pool(threads: usize) -> Result<(ThreadPool, String), EngineError> {
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
