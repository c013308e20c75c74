//! The options that choose samples.

use std::path::PathBuf;

use clap::Args;

use super::{DataError, Mnist};

/// Options that choose samples.
#[derive(Clone, Debug, Default, Args)]
pub struct DataOptions {
    /// Four IDX files of 28×28 digits under MNIST's names, plain or .gz [default: the
    /// embedded MNIST]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,

    /// Use only the first N training samples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub train_limit: Option<usize>,

    /// Use only the first N test samples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub test_limit: Option<usize>,
}

impl DataOptions {
    /// Reads the samples.
    ///
    /// # Errors
    /// If a file is missing or wrong, or a limit is over what there is.
    pub fn load(&self) -> Result<Mnist, DataError> {
        let whole = match &self.data_dir {
            Some(directory) => Mnist::from_dir(directory)?,
            None => Mnist::embedded()?,
        };
        whole.limit(self.train_limit, self.test_limit)
    }
}
