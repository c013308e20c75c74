//! The program that is trained, as a worker needs it.

use std::fmt::Debug;

use crate::device::DeviceOptions;
use crate::engine::{Engine, EngineError};

/// A program that a worker can compute.
pub trait WorkerProgram: Send + Sync + Debug {
    /// Its name. A worker takes part only in runs whose program has this name.
    fn name(&self) -> &str;

    /// An engine for these arguments (JSON, as the coordinator's Welcome has them) on this device. Its parameters
    /// and momentum are zeros until it is given a state.
    ///
    /// # Errors
    /// [`EngineError::Arguments`] if the program does not know the arguments, [`EngineError::Unavailable`] if the
    /// device cannot be used, and [`EngineError::Failed`] if the device failed.
    fn engine(&self, arguments: &str, device: &DeviceOptions) -> Result<Box<dyn Engine>, EngineError>;

    /// The number of CUDA devices that the program can use on this machine. Several workers on one machine are
    /// spread over them.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] if they cannot be counted.
    fn cuda_devices(&self) -> Result<usize, EngineError> {
        Err(EngineError::Unavailable(format!(
            "the program {:?} cannot count devices: name them, as in --devices 0,1",
            self.name()
        )))
    }
}
