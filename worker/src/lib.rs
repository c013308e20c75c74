//! The worker: computes gradients for a Tally cluster.
//!
//! [`engine`] is the interface of a model on a device; [`program`] makes an engine for a run, on a device that
//! [`device`] names. [`burn`] has the parts that engines with Burn share. [`session`] is a worker's part in a cluster:
//! connect, load a state, contribute, apply, commit. [`mod@work`] is a worker's process, and [`devices`] runs several
//! of them on one machine.

#![deny(unsafe_code)]

pub mod burn;
#[cfg(feature = "cuda-kernels")]
pub mod cuda_probe;
pub mod device;
pub mod devices;
pub mod engine;
pub mod panic_message;
pub mod program;
pub mod session;
pub mod signals;
pub mod work;

pub use program::WorkerProgram;
pub use work::{WorkOptions, work};
