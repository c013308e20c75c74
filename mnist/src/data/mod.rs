//! The data: MNIST and the random number that each image is paired with.
//!
//! [`mnist`] holds MNIST itself, embedded or from a directory of IDX files ([`idx`]); [`with_numbers`] pairs every
//! image with its random number 0-9; [`samples`] are the samples of a microbatch. Files are read once, at the start:
//! afterwards nothing here does I/O or can fail for a reason outside its arguments. [`recorded`] reads those of a run
//! again, and checks that they are the same.
//!
//! **DATA-2** is kept by [`with_numbers`], which knows the run's seed and the data and nothing of the workers.

pub mod idx;
pub mod mnist;
pub mod options;
pub mod recorded;
pub mod samples;
pub mod with_numbers;

pub use idx::IdxError;
pub use mnist::{DataError, Mnist, Split};
pub use options::DataOptions;
pub use recorded::RecordedData;
pub use samples::{BadSamples, ITEM, PIXELS, SIDE, Samples};
pub use with_numbers::MnistWithNumbers;
