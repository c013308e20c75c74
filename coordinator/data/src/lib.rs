//! The samples of a run and the order in which they are used.
//!
//! [`mnist`] holds MNIST itself, embedded or from a directory of IDX files ([`idx`]);
//! [`paired`] pairs every image with its random number 0-9; [`schedule`] says which
//! samples belong to which step; [`samples`] are a few of them on their way to a worker.
//! [`source`] is where a run's samples are from, and [`kept`] a path that leads there from anywhere.
//! Files are read once, at the start: afterwards nothing here does I/O or can fail for
//! a reason outside its arguments.
//!
//! Promises kept here (see ARCHITECTURE.md): **DATA-1** in the plan by [`schedule`] (the
//! coordinator's ledger keeps it in what is committed), **DATA-2** by [`paired`] and
//! [`schedule`], which know the run's seed and the data and nothing of the workers.

#![forbid(unsafe_code)]

pub mod idx;
pub mod kept;
pub mod mnist;
pub mod paired;
pub mod samples;
pub mod schedule;
pub mod source;

pub use idx::IdxError;
pub use mnist::{DataError, Mnist, Split};
pub use paired::{Paired, PairedError};
pub use samples::{BadSamples, PIXELS, SIDE, Samples};
pub use schedule::{BadSchedule, Schedule};
pub use source::DataConfig;
