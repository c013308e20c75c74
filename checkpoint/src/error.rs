//! Errors of checkpoints. Each says what is wrong, where, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::meta::VERSION;

/// A checkpoint or a file of weights that could not be written or used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file operation failed. Existing whole checkpoints are intact.
    #[error(
        "cannot {doing} {path}: {source}; {}", advice(doing, source.kind())
    )]
    Io {
        /// The operation, as in "cannot …".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file of a checkpoint is not what was written.
    #[error("checkpoint {directory} is damaged: {file} {why}; use an older checkpoint, and delete this one")]
    Damaged {
        /// The checkpoint.
        directory: PathBuf,
        /// Its file.
        file: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing there is a checkpoint.
    #[error(
        "{path} is no checkpoint, {}; name a directory such as checkpoints/step-00000100",
        if path.exists() { "it has no manifest.json" } else { "there is nothing by that name" }
    )]
    Absent {
        /// The path given.
        path: PathBuf,
    },
    /// A format that this version does not know.
    #[error(
        "checkpoint {directory} has format {found}, and this Tally reads format {VERSION}: {}", remedy((*found).into(), VERSION)
    )]
    Version {
        /// The checkpoint.
        directory: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Parameters, moments and [`Meta`](crate::Meta) that do not belong together. Nothing was written, because it
    /// could not be read again.
    #[error(
        "the checkpoint of step {step} was not written: {why}; this is a fault in Tally, please report it"
    )]
    Refused {
        /// The step.
        step: u64,
        /// What does not fit.
        why: String,
    },
    /// A link by another name than "best" or "last", or to no checkpoint.
    #[error(
        "cannot link {name} to step {step} in {root}: only best and last, and only to a checkpoint that is there"
    )]
    Link {
        /// The root.
        root: PathBuf,
        /// The link's name.
        name: String,
        /// The step it should lead to.
        step: u64,
    },
    /// A file that is no safetensors file, or not a whole one.
    #[error(
        "{path} is no whole safetensors file: it {why}; save the weights again, for example with safetensors.torch.save_file"
    )]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor of the network that a file of weights lacks.
    #[error(
        "{path} has no tensor {tensor}, which the network has in shape {wanted:?}: {instead}; use weights of the same network"
    )]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the network.
        wanted: Vec<u32>,
        /// What the file has instead.
        instead: String,
    },
    /// A tensor of another shape than the network's.
    #[error(
        "{path}: tensor {tensor} has shape {found:?}, and the network wants {wanted:?}; use weights of the same network"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape in the network.
        wanted: Vec<u32>,
    },
    /// A tensor that is not of floating-point numbers.
    #[error("{path}: tensor {tensor} is of type {found}, not F32, F64, F16 or BF16; save it as float32")]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        found: String,
    },
    /// A value from which no training can start.
    #[error(
        "{path}: element {index} of tensor {tensor} is {value}, which is no finite float32; use weights from before the run diverged"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element, row-major, from 0.
        index: usize,
        /// Its value.
        value: f64,
    },
}

/// The remedy for an error of the system.
fn advice(doing: &str, kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind as K;
    match (doing, kind) {
        (_, K::NotFound) => "check the path: nothing is there by that name",
        ("read" | "list", _) => "check its permissions and the disk",
        (_, K::StorageFull | K::QuotaExceeded) => "make room (checkpoints already written are untouched)",
        (_, K::PermissionDenied | K::ReadOnlyFilesystem) => {
            "let it be written, or choose another directory (checkpoints already written are untouched)"
        }
        (_, K::Unsupported | K::CrossesDevices | K::InvalidInput) => {
            "its file system cannot do that; choose a directory on another one (checkpoints already written are untouched)"
        }
        _ => "check the disk (checkpoints already written are untouched)",
    }
}

/// What to do about a file of another version than `read`, the one that this build reads.
#[must_use]
pub fn remedy(found: u64, read: u32) -> &'static str {
    if found > read.into() {
        "it is newer; upgrade this Tally, or use the one that wrote it"
    } else {
        "it is older; use the Tally that wrote it"
    }
}

impl CheckpointError {
    /// For `map_err`: the system refused `doing` on `path`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.into(), source }
    }
}
