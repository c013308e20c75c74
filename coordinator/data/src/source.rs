//! Where a run's samples are from, as its files keep it: enough to have the same ones again, and to know that they
//! are the same.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::kept::KeptPath;
use crate::mnist::{DataError, Mnist};

/// Which samples a run uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataConfig {
    /// The directory they were read from; `None` for the embedded MNIST.
    pub directory: Option<KeptPath>,
    /// Only the first so many training samples.
    pub train_limit: Option<usize>,
    /// Only the first so many test samples.
    pub test_limit: Option<usize>,
    /// Training samples.
    pub train_samples: usize,
    /// Test samples.
    pub test_samples: usize,
    /// SHA-256 over all of them, in hex.
    pub sha256: String,
}

impl DataConfig {
    /// Describes `data`, the first samples of what is in `directory`.
    #[must_use]
    pub fn of(
        directory: Option<&Path>,
        train_limit: Option<usize>,
        test_limit: Option<usize>,
        data: &Mnist,
    ) -> Self {
        Self {
            directory: directory.map(KeptPath::from),
            train_limit,
            test_limit,
            train_samples: data.train.len(),
            test_samples: data.test.len(),
            sha256: data.sha256(),
        }
    }

    /// The samples, from where they were or from where they have `moved` to.
    ///
    /// # Errors
    /// [`DataError`] if they can't be read, or are not those of the run.
    pub fn load(&self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        self.limited(&self.read(moved)?, moved)
    }

    /// The same with all that is in the files, beyond the run's limits.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn whole(&self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        let whole = self.read(moved)?;
        self.limited(&whole, moved)?;
        Ok(whole)
    }

    /// Whether these are the samples, or have them at their beginning.
    #[must_use]
    pub fn is(&self, whole: &Mnist) -> bool {
        self.limited(whole, None).is_ok()
    }

    fn read(&self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        match (moved, &self.directory) {
            (Some(moved), _) => Mnist::from_dir(moved),
            (None, None) => Mnist::embedded(),
            (None, Some(kept)) => Mnist::from_dir(kept.as_ref()).map_err(|source| DataError::Moved {
                directory: kept.as_ref().into(),
                source: Box::new(source),
            }),
        }
    }

    fn limited(&self, whole: &Mnist, moved: Option<&Path>) -> Result<Mnist, DataError> {
        let limited = whole.limit(self.train_limit, self.test_limit);
        let place = || match (moved, &self.directory) {
            (Some(place), _) => place.display().to_string(),
            (None, Some(kept)) => kept.to_string(),
            (None, None) => "the embedded MNIST".into(),
        };
        match limited {
            Ok(limited) if limited.sha256() == self.sha256 => Ok(limited),
            _ => Err(DataError::Other { place: place() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory with so many samples of each kind.
    fn directory(train: u32, test: u32) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let idx = |header: &[u32], values: u32| -> Vec<u8> {
            header
                .iter()
                .flat_map(|word| word.to_be_bytes())
                .chain((0..values).map(|i| (i % 7) as u8))
                .collect()
        };
        for (name, count) in [("train", train), ("t10k", test)] {
            let images = idx(&[0x803, count, 28, 28], count * 784);
            fs::write(root.path().join(format!("{name}-images-idx3-ubyte")), images).unwrap();
            let labels = idx(&[0x801, count], count);
            fs::write(root.path().join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
        }
        root
    }

    fn config(root: &Path) -> DataConfig {
        let data = Mnist::from_dir(root).unwrap().limit(Some(3), Some(2)).unwrap();
        DataConfig::of(Some(root), Some(3), Some(2), &data)
    }

    #[test]
    fn data_2_a_runs_samples_are_had_again_and_no_others() {
        let root = directory(5, 4);
        let config = config(root.path());
        assert_eq!(config.load(None).unwrap().sha256(), config.sha256);
        assert_eq!(config.whole(None).unwrap().test.len(), 4);

        // They have moved, and somebody says where to.
        let other = tempfile::tempdir().unwrap();
        let moved = other.path().join("moved");
        fs::rename(root.path(), &moved).unwrap();
        let error = config.load(None).unwrap_err().to_string();
        for words in [root.path().to_str().unwrap(), "does not exist", "if they have moved", "--data-dir"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!error.contains("embedded"), "{error}");
        assert_eq!(config.load(Some(&moved)).unwrap().sha256(), config.sha256);

        // Others are in their place.
        for other in [directory(5, 1), directory(6, 5)] {
            let labels = other.path().join("t10k-labels-idx1-ubyte");
            let mut bytes = fs::read(&labels).unwrap();
            *bytes.last_mut().unwrap() = 9;
            bytes[8] = 9;
            fs::write(labels, bytes).unwrap();
            let error = config.load(Some(other.path())).unwrap_err().to_string();
            assert!(error.contains("not the data") && error.contains("--data-dir"), "{error}");
            assert!(!config.is(&Mnist::from_dir(other.path()).unwrap()));
        }
    }

    #[test]
    fn the_embedded_data_is_checked_too() {
        let config = DataConfig {
            directory: None,
            train_limit: Some(1),
            test_limit: Some(1),
            train_samples: 1,
            test_samples: 1,
            sha256: "of others".into(),
        };
        let error = config.load(None).unwrap_err().to_string();
        assert!(error.contains("the embedded MNIST is not the data"), "{error}");
    }
}
