//! The samples of a run that is on disk: `run.json` and each checkpoint record where they were, and their SHA-256.

use std::path::Path;

use tally_run::config::DataConfig;
use tally_run::stored_path::StoredPath;

use super::{DataError, DataOptions, Mnist};

/// Describes `data`, which `options` chose.
#[must_use]
pub fn describe(options: &DataOptions, data: &Mnist) -> DataConfig {
    DataConfig {
        directory: options.data_dir.as_deref().map(StoredPath::from),
        train_limit: options.train_limit,
        test_limit: options.test_limit,
        train_samples: data.train.len(),
        test_samples: data.test.len(),
        sha256: data.sha256(),
    }
}

/// The recorded samples of a run. They are compared with their SHA-256 whenever they are read.
#[derive(Clone, Copy, Debug)]
pub struct RecordedData<'a>(pub &'a DataConfig);

impl RecordedData<'_> {
    /// The samples, from their recorded directory, or from the one that they have `moved` to.
    ///
    /// # Errors
    /// [`DataError`] if they cannot be read, or are not those of the run.
    pub fn load(self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        self.limited(&self.read(moved)?, moved)
    }

    /// All samples of the files, without the run's limits.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn whole(self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        let whole = self.read(moved)?;
        self.limited(&whole, moved)?;
        Ok(whole)
    }

    /// Whether `whole` begins with the run's samples.
    #[must_use]
    pub fn is(self, whole: &Mnist) -> bool {
        self.limited(whole, None).is_ok()
    }

    fn read(self, moved: Option<&Path>) -> Result<Mnist, DataError> {
        match (moved, &self.0.directory) {
            (Some(moved), _) => Mnist::from_dir(moved),
            (None, None) => Mnist::embedded(),
            (None, Some(stored)) => Mnist::from_dir(stored.as_ref()).map_err(|source| DataError::Moved {
                directory: stored.as_ref().into(),
                source: Box::new(source),
            }),
        }
    }

    fn limited(self, whole: &Mnist, moved: Option<&Path>) -> Result<Mnist, DataError> {
        let limited = whole.limit(self.0.train_limit, self.0.test_limit);
        let place = || match (moved, &self.0.directory) {
            (Some(place), _) => place.display().to_string(),
            (None, Some(stored)) => stored.to_string(),
            (None, None) => "the embedded MNIST".into(),
        };
        match limited {
            Ok(limited) if limited.sha256() == self.0.sha256 => Ok(limited),
            _ => Err(DataError::Other { place: place() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory with so many samples of each split.
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
        let options = DataOptions { data_dir: Some(root.into()), train_limit: Some(3), test_limit: Some(2) };
        describe(&options, &data)
    }

    #[test]
    fn data_2_a_run_goes_on_with_its_own_samples_and_no_others() {
        let root = directory(5, 4);
        let config = config(root.path());
        let data = RecordedData(&config);
        assert_eq!(data.load(None).unwrap().sha256(), config.sha256);
        assert_eq!(data.whole(None).unwrap().test.len(), 4);

        // They have moved, and the user gives the new directory.
        let other = tempfile::tempdir().unwrap();
        let moved = other.path().join("moved");
        fs::rename(root.path(), &moved).unwrap();
        let error = data.load(None).unwrap_err().to_string();
        for words in [root.path().to_str().unwrap(), "does not exist", "if they have moved", "--data-dir"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!error.contains("embedded"), "{error}");
        assert_eq!(data.load(Some(&moved)).unwrap().sha256(), config.sha256);

        // Other samples are refused.
        for other in [directory(5, 1), directory(6, 5)] {
            let labels = other.path().join("t10k-labels-idx1-ubyte");
            let mut bytes = fs::read(&labels).unwrap();
            *bytes.last_mut().unwrap() = 9;
            bytes[8] = 9;
            fs::write(labels, bytes).unwrap();
            let error = data.load(Some(other.path())).unwrap_err().to_string();
            assert!(error.contains("not the data") && error.contains("--data-dir"), "{error}");
            assert!(!data.is(&Mnist::from_dir(other.path()).unwrap()));
        }
    }

    #[test]
    fn embedded_data_is_checked_too() {
        let config = DataConfig {
            directory: None,
            train_limit: Some(1),
            test_limit: Some(1),
            train_samples: 1,
            test_samples: 1,
            sha256: "of others".into(),
        };
        let error = RecordedData(&config).load(None).unwrap_err().to_string();
        assert!(error.contains("the embedded MNIST is not the data"), "{error}");
    }
}
