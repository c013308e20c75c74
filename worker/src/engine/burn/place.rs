//! Where and how an engine computes.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use burn::tensor::backend::Backend;
use rayon::ThreadPool;

use crate::engine::EngineError;

/// Where a backend's tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In the host's memory: reading one is free.
    Host,
    /// Across a bus: every read waits for the device, and every byte takes its time.
    Device,
}

/// What the network is computed in. Parameters, momentum, gradients and their sums are
/// float32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Precision {
    /// float32
    F32,
    /// float32, with leave to round the factors of convolutions to TF32 where there are units for it
    #[default]
    Tf32,
    /// bfloat16 for the factors of convolutions, or, with Burn's kernels, for all between parameters and answers
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is no precision; there are f32, tf32 and bf16")),
        }
    }
}

/// Where an engine computes.
pub struct Place<B: Backend> {
    /// The backend's name, for errors: `"CPU"`.
    pub backend: &'static str,
    /// The device in words, for logs.
    pub words: String,
    /// What decides its bits: the model of a GPU.
    pub kind: String,
    /// The device.
    pub device: B::Device,
    /// Where its tensors lie.
    pub memory: Memory,
    /// What the network is computed in.
    pub precision: Precision,
    /// The threads on which it computes; the caller's own without a pool.
    pub pool: Option<ThreadPool>,
}

impl<B: Backend> Place<B> {
    /// Runs `work` on the place's threads. A panic in it, which is how Burn reports a
    /// device's failure, becomes an error.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce(&B::Device) -> Result<T, String> + Send,
    ) -> Result<T, EngineError> {
        let device = &self.device;
        let result = catch_unwind(AssertUnwindSafe(|| match &self.pool {
            Some(pool) => pool.install(|| work(device)),
            None => work(device),
        }));
        result.unwrap_or_else(|panic| Err(words_of(&*panic))).map_err(|what| self.failed(what))
    }

    pub(super) fn failed(&self, what: String) -> EngineError {
        EngineError::Failed { backend: self.backend, what }
    }
}

/// What a panic said.
pub fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a word").to_owned()
}
