//! MNIST: a training and a test split, embedded in the binary or read from a directory.
//!
//! What is embedded is the official data, unchanged (see `data/README.md` for source,
//! licence and checksums), so that a run needs nothing on its disk. A split's images and
//! labels agree in number, and every label is a digit: only such splits exist.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tally_numerics::manifest::hex;
use thiserror::Error;

use super::idx::{self, IdxError, MAX_SAMPLES};
use super::samples::PIXELS;

/// One of the four files: what it is called, and the official bytes.
struct Official {
    /// The official name, without `.gz`.
    name: &'static str,
    /// The spelling with a dot, in which some collections have it.
    dotted: &'static str,
    gzip: &'static [u8],
}

const TRAIN_IMAGES: Official = Official {
    name: "train-images-idx3-ubyte",
    dotted: "train-images.idx3-ubyte",
    gzip: include_bytes!("../../data/train-images-idx3-ubyte.gz"),
};
const TRAIN_LABELS: Official = Official {
    name: "train-labels-idx1-ubyte",
    dotted: "train-labels.idx1-ubyte",
    gzip: include_bytes!("../../data/train-labels-idx1-ubyte.gz"),
};
const TEST_IMAGES: Official = Official {
    name: "t10k-images-idx3-ubyte",
    dotted: "t10k-images.idx3-ubyte",
    gzip: include_bytes!("../../data/t10k-images-idx3-ubyte.gz"),
};
const TEST_LABELS: Official = Official {
    name: "t10k-labels-idx1-ubyte",
    dotted: "t10k-labels.idx1-ubyte",
    gzip: include_bytes!("../../data/t10k-labels-idx1-ubyte.gz"),
};

/// Data that cannot be used: what is wrong, where, and what to do.
#[derive(Debug, Error)]
pub enum DataError {
    /// One of the four files is wrong.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// One of the four files is not there.
    #[error(
        "{directory}: has no {name} (or {name}.gz); a data directory holds train-images-idx3-ubyte, \
         train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or gzip"
    )]
    Missing {
        /// The directory.
        directory: PathBuf,
        /// The file that is not there.
        name: &'static str,
    },
    /// There is no such directory.
    #[error("{directory}: {}; check the path", if directory.exists() { "is no directory" } else { "does not exist" })]
    NoDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// The recorded data of a run cannot be read.
    #[error(
        "{source}; the run's samples must be in {directory}; if they have moved, name their new directory with --data-dir"
    )]
    Moved {
        /// The recorded directory.
        directory: PathBuf,
        /// Why they cannot be read.
        source: Box<DataError>,
    },
    /// The samples are not those of the run.
    #[error(
        "{place} is not the data that the run was trained on; name the directory with the same files by --data-dir"
    )]
    Other {
        /// Where they were read.
        place: String,
    },
    /// A split whose images and labels do not belong together.
    #[error(
        "the {split} split has {pixels} bytes of pixels and {labels} labels, not 784 bytes for each of 1 to {MAX_SAMPLES} labels; use images and labels of the same set"
    )]
    Counts {
        /// "training" or "test".
        split: &'static str,
        /// How many bytes of pixels.
        pixels: usize,
        /// How many labels.
        labels: usize,
    },
    /// A label that is no digit.
    #[error(
        "the {split} split: the label of sample {index} is {value}, not a digit from 0 to 9; use a set of ten digits"
    )]
    Label {
        /// "training" or "test".
        split: &'static str,
        /// The sample, from 0.
        index: usize,
        /// Its label.
        value: u8,
    },
    /// A limit of no samples, or of more than there are.
    #[error(
        "cannot take the first {limit} samples of the {split} split, which has {has}; use a limit of 1 to {has}"
    )]
    Limit {
        /// "training" or "test".
        split: &'static str,
        /// The limit asked for.
        limit: usize,
        /// How many samples there are.
        has: usize,
    },
}

/// Images and their labels. Cheap to clone: clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pixels: Arc<[u8]>,
    labels: Arc<[u8]>,
}

impl Split {
    /// Checks that `pixels` (784 bytes an image, row-major, 0 is background) and `labels`
    /// (0 to 9) belong together. `name`, "training" or "test", is for errors alone.
    ///
    /// # Errors
    /// [`DataError::Counts`] and [`DataError::Label`].
    pub fn new(name: &'static str, pixels: Vec<u8>, labels: Vec<u8>) -> Result<Self, DataError> {
        let n = labels.len();
        if !(1..=MAX_SAMPLES).contains(&n) || pixels.len() != n * PIXELS {
            return Err(DataError::Counts { split: name, pixels: pixels.len(), labels: n });
        }
        if let Some(index) = labels.iter().position(|&label| label > 9) {
            return Err(DataError::Label { split: name, index, value: labels[index] });
        }
        Ok(Self { pixels: pixels.into(), labels: labels.into() })
    }

    /// How many samples.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A split is never empty.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The pixels, image after image, 784 bytes each, row-major, 0 is background.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels of image `index`, if there is one.
    #[must_use]
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        self.pixels.chunks_exact(PIXELS).nth(index)
    }

    /// The digits the images show.
    #[must_use]
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    fn first(&self, name: &'static str, limit: usize) -> Result<Self, DataError> {
        let has = self.len();
        match limit {
            _ if limit == has => Ok(self.clone()),
            0 => Err(DataError::Limit { split: name, limit, has }),
            _ if limit > has => Err(DataError::Limit { split: name, limit, has }),
            // A copy, so that a small run does not hold the whole data in memory.
            _ => {
                Ok(Self { pixels: self.pixels[..limit * PIXELS].into(), labels: self.labels[..limit].into() })
            }
        }
    }

    /// Feeds the count (64-bit little-endian), the pixels and the labels to a hash.
    fn hash_into(&self, hash: &mut Sha256) {
        hash.update((self.len() as u64).to_le_bytes());
        hash.update(&self.pixels);
        hash.update(&self.labels);
    }
}

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mnist {
    /// What is trained on.
    pub train: Split,
    /// What is tested on.
    pub test: Split,
}

impl Mnist {
    /// The official data, 60 000 training and 10 000 test samples, out of the binary.
    ///
    /// # Errors
    /// None for the bytes as they are embedded, which a test reads.
    pub fn embedded() -> Result<Self, DataError> {
        Self::from_files(|official| {
            Ok((PathBuf::from(format!("embedded {}.gz", official.name)), official.gzip))
        })
    }

    /// The four files of a directory, by their official names (`train-images-idx3-ubyte`
    /// or `train-images.idx3-ubyte`, and so on), each with or without `.gz` and with any
    /// count. Whether a file is gzip is decided by its content. Where both are there, the
    /// name without `.gz` comes first.
    ///
    /// # Errors
    /// [`DataError`] says which file is missing or what is wrong with it.
    pub fn from_dir(directory: &Path) -> Result<Self, DataError> {
        if !directory.is_dir() {
            return Err(DataError::NoDirectory { directory: directory.into() });
        }
        Self::from_files(|official| {
            for stem in [official.name, official.dotted] {
                for file in [directory.join(stem), directory.join(format!("{stem}.gz"))] {
                    match File::open(&file) {
                        Ok(open) => return Ok((file, BufReader::new(open))),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(source) => return Err(IdxError::Io { file, source }.into()),
                    }
                }
            }
            Err(DataError::Missing { directory: directory.into(), name: official.name })
        })
    }

    fn from_files<R: io::BufRead>(
        open: impl Fn(&Official) -> Result<(PathBuf, R), DataError>,
    ) -> Result<Self, DataError> {
        let split = |name, images: &Official, labels: &Official| {
            // The labels first: they are small, so that a wrong directory is found quickly.
            let (file, reader) = open(labels)?;
            let digits = idx::labels(&file, reader)?;
            let (file, reader) = open(images)?;
            Split::new(name, idx::images(&file, reader)?, digits)
        };
        Ok(Self {
            train: split("training", &TRAIN_IMAGES, &TRAIN_LABELS)?,
            test: split("test", &TEST_IMAGES, &TEST_LABELS)?,
        })
    }

    /// The first `train` and the first `test` samples; all of a split where `None`.
    ///
    /// # Errors
    /// [`DataError::Limit`] if a limit is 0 or over what there is.
    pub fn limit(&self, train: Option<usize>, test: Option<usize>) -> Result<Self, DataError> {
        Ok(Self {
            train: self.train.first("training", train.unwrap_or(self.train.len()))?,
            test: self.test.first("test", test.unwrap_or(self.test.len()))?,
        })
    }

    /// A fingerprint of the content, by which a resumed run sees that it has the data it
    /// began with: SHA-256, in hex, over the training split and then the test split, each
    /// as its count (64-bit little-endian), its pixels and its labels.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.train.hash_into(&mut hash);
        self.test.hash_into(&mut hash);
        hex(&hash.finalize())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    const FILES: [Official; 4] = [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS];

    /// SHA-256 of the four files, in the order of `FILES`: as embedded and unpacked.
    /// `data/README.md` has the same.
    const CHECKSUMS: [(&str, &str); 4] = [
        (
            "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        (
            "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ];

    fn sha256(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    /// Three training and two test samples, as they would lie in a directory.
    fn tiny() -> Mnist {
        let split = |name, labels: &[u8]| {
            let pixels = (0..labels.len() * PIXELS).map(|i| (i % 251) as u8).collect();
            Split::new(name, pixels, labels.to_vec()).unwrap()
        };
        Mnist { train: split("training", &[5, 0, 4]), test: split("test", &[7, 2]) }
    }

    /// The IDX bytes of a split: images, labels.
    fn idx_bytes(split: &Split) -> [Vec<u8>; 2] {
        let n = split.len() as u32;
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
        [
            [words(&[0x803, n, 28, 28]), split.pixels().to_vec()].concat(),
            [words(&[0x801, n]), split.labels().to_vec()].concat(),
        ]
    }

    fn write_tiny(directory: &Path, names: [&str; 4]) {
        let tiny = tiny();
        let contents = [idx_bytes(&tiny.train), idx_bytes(&tiny.test)].concat();
        for (name, bytes) in names.into_iter().zip(contents) {
            fs::write(directory.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn the_embedded_files_are_the_official_ones() {
        let readme = include_str!("../../data/README.md");
        for (official, (packed, unpacked)) in FILES.iter().zip(CHECKSUMS) {
            assert_eq!(sha256(official.gzip), packed, "{}", official.name);
            let mut bytes = Vec::new();
            GzDecoder::new(official.gzip).read_to_end(&mut bytes).unwrap();
            assert_eq!(sha256(&bytes), unpacked, "{}", official.name);
            assert!(
                readme.contains(packed) && readme.contains(unpacked),
                "README.md lists {}",
                official.name
            );
        }
    }

    #[test]
    fn the_embedded_data_is_read_whole() {
        let mnist = Mnist::embedded().unwrap();
        assert_eq!((mnist.train.len(), mnist.test.len()), (60_000, 10_000));
        // The counts of each digit, as the literature gives them.
        let mut counts = [0u32; 10];
        mnist.train.labels().iter().for_each(|&label| counts[usize::from(label)] += 1);
        assert_eq!(counts, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
        assert_eq!(mnist.train.labels()[..5], [5, 0, 4, 1, 9]);
        // The mean pixel is the 0.1307 by which the network's inputs are normalised.
        let sum: u64 = mnist.train.pixels().iter().map(|&p| u64::from(p)).sum();
        let mean = sum as f64 / 255.0 / mnist.train.pixels().len() as f64;
        assert!((mean - 0.1307).abs() < 5e-5, "{mean}");
    }

    /// DATA-2: a resumed run compares this with what its run wrote down, so it must not
    /// change between versions.
    #[test]
    fn data_2_the_fingerprint_is_pinned_and_follows_the_content() {
        let mnist = Mnist::embedded().unwrap();
        assert_eq!(mnist.sha256(), "a5d6a04bb2a989b36e719bf96f7b28c594d62dce811eafa45cde12c30c1542d2");
        let limited = mnist.limit(Some(3), Some(2)).unwrap();
        assert_ne!(limited.sha256(), mnist.sha256());
        let by_hand = {
            let part = |s: &Split| [&(s.len() as u64).to_le_bytes()[..], s.pixels(), s.labels()].concat();
            sha256(&[part(&limited.train), part(&limited.test)].concat())
        };
        assert_eq!(limited.sha256(), by_hand);
        let swapped = Mnist { train: limited.test.clone(), test: limited.train.clone() };
        assert_ne!(swapped.sha256(), limited.sha256());
    }

    #[test]
    fn a_directory_is_read_in_every_spelling() {
        for names in [
            FILES.map(|f| f.name.to_owned()),
            FILES.map(|f| format!("{}.gz", f.name)),
            FILES.map(|f| f.dotted.to_owned()),
            FILES.map(|f| format!("{}.gz", f.dotted)),
        ] {
            let directory = tempfile::tempdir().unwrap();
            // The content is plain throughout: what the name says does not count.
            write_tiny(directory.path(), [0, 1, 2, 3].map(|i| names[i].as_str()));
            assert_eq!(Mnist::from_dir(directory.path()).unwrap(), tiny(), "{names:?}");
        }
    }

    #[test]
    fn a_directory_of_gzip_files_is_the_embedded_data() {
        let directory = tempfile::tempdir().unwrap();
        for file in FILES {
            fs::write(directory.path().join(format!("{}.gz", file.name)), file.gzip).unwrap();
        }
        assert_eq!(Mnist::from_dir(directory.path()).unwrap(), Mnist::embedded().unwrap());
    }

    #[test]
    fn a_missing_file_or_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        write_tiny(directory.path(), FILES.map(|f| f.name));
        fs::remove_file(directory.path().join("t10k-labels-idx1-ubyte")).unwrap();
        let error = Mnist::from_dir(directory.path()).unwrap_err();
        assert!(matches!(error, DataError::Missing { name: "t10k-labels-idx1-ubyte", .. }), "{error}");
        let error = Mnist::from_dir(Path::new("no/such/place")).unwrap_err();
        assert!(error.to_string().starts_with("no/such/place: does not exist"), "{error}");
        let file = directory.path().join("train-labels-idx1-ubyte");
        let error = Mnist::from_dir(&file).unwrap_err();
        assert!(error.to_string().contains("is no directory"), "{error}");
    }

    #[test]
    fn a_directory_in_a_files_place_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(TRAIN_LABELS.name)).unwrap();
        let error = Mnist::from_dir(directory.path()).unwrap_err();
        assert!(matches!(error, DataError::Idx(IdxError::Io { .. })), "{error}");
        assert!(error.to_string().contains(TRAIN_LABELS.name), "{error}");
    }

    #[test]
    fn images_and_labels_of_different_counts_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        write_tiny(directory.path(), FILES.map(|f| f.name));
        let fewer = &idx_bytes(&tiny().test)[1];
        fs::write(directory.path().join(TRAIN_LABELS.name), fewer).unwrap();
        let error = Mnist::from_dir(directory.path()).unwrap_err();
        assert!(matches!(error, DataError::Counts { split: "training", pixels: 2352, labels: 2 }), "{error}");
    }

    #[test]
    fn only_splits_that_fit_together_exist() {
        assert!(matches!(Split::new("test", vec![], vec![]), Err(DataError::Counts { .. })));
        let error = Split::new("test", vec![0; PIXELS], vec![10]).unwrap_err();
        assert!(matches!(error, DataError::Label { index: 0, value: 10, .. }), "{error}");
        let split = tiny().train;
        assert_eq!(split.image(2).unwrap(), &split.pixels()[2 * PIXELS..]);
        assert_eq!(split.image(3), None);
    }

    #[test]
    fn a_limit_takes_the_first_samples_of_each_split() {
        let tiny = tiny();
        assert_eq!(tiny.limit(None, None).unwrap(), tiny);
        let limited = tiny.limit(Some(2), Some(2)).unwrap();
        assert_eq!(limited.train.labels(), [5, 0]);
        assert_eq!(limited.train.pixels(), &tiny.train.pixels()[..2 * PIXELS]);
        assert_eq!(limited.test, tiny.test);
        for (train, test) in [(Some(0), None), (Some(4), None), (None, Some(0)), (None, Some(3))] {
            let error = tiny.limit(train, test).unwrap_err();
            assert!(matches!(error, DataError::Limit { .. }), "{error}");
        }
    }
}
